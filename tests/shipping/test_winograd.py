"""Convolutions with fewer products: the same numbers as PyTorch's own."""

import pytest
import torch
from torch import nn

from stage2_train_student.shipping.winograd import WinogradConvolution, with_fewer_products
from stage2_train_student.students.birds_eye_unet import BirdsEyeUNet


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 8), (30, 22), (61, 90)])
def test_it_is_the_convolution_for_maps_of_any_size(shape):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(5, 7, 3, padding=(1, 0)), nn.LeakyReLU(inplace=True)).double()
    wrapped = torch.randn(1, 5, shape[0], shape[1] + 2, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            found = WinogradConvolution(block)(wrapped.contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, block(wrapped), rtol=1e-12, atol=1e-12)


def test_single_precision_loses_a_digit_at_most():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(256, 64, 3, padding=(1, 0)), nn.Identity())
    wrapped = torch.randn(1, 256, 20, 26)
    with torch.inference_mode():
        single = WinogradConvolution(block)(wrapped), block(wrapped)
        exact = block.double()(wrapped.double())
    errors = [(found.double() - exact).abs().max() for found in single]
    assert errors[0] < 10 * errors[1]


def test_only_convolutions_of_many_channels_are_replaced():
    network = BirdsEyeUNet(8, 4, 0.0, width=16)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            del module[1]
    with_fewer_products(network)
    replaced = {name for name, module in network.named_modules() if isinstance(module, WinogradConvolution)}
    assert replaced == {
        "down2.mpconv.1.conv2",
        "down3.mpconv.1.conv1",
        "down3.mpconv.1.conv2",
        "down4.mpconv.1.conv1",
        "down4.mpconv.1.conv2",
        "up1.conv.conv1",
        "up1.conv.conv2",
    }
