"""The maximum over segments against a plain loop, values and gradients."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.scans.scatter import segment_max


def by_loop(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    return torch.stack([values[segment == row].amax(dim=0) for row in range(segments)])


@st.composite
def segmented_values(draw):
    """Distinct-enough values in double precision; every segment has at least one row."""
    segments = draw(st.integers(1, 8))
    extra = draw(st.lists(st.integers(0, segments - 1), max_size=30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    segment = torch.tensor(list(range(segments)) + extra)[torch.randperm(segments + len(extra), generator=generator)]
    values = torch.randn(len(segment), draw(st.integers(1, 5)), dtype=torch.float64, generator=generator)
    return values, segment, segments


@given(segmented_values())
def test_values_and_gradients_equal_a_loop(case):
    values, segment, segments = case
    ours, loop = values.clone().requires_grad_(), values.clone().requires_grad_()
    result, expected = segment_max(ours, segment, segments), by_loop(loop, segment, segments)
    assert torch.equal(result, expected)
    weight = torch.arange(result.numel(), dtype=torch.float64).reshape(result.shape) + 1
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, loop.grad)


def test_gradient_is_numerically_right():
    values = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    segment = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda rows: segment_max(rows, segment, 3), values)


def test_gradient_of_a_tie_is_not_multiplied():
    values = torch.tensor([[2.0], [2.0], [1.0], [5.0]], requires_grad=True)
    segment_max(values, torch.tensor([0, 0, 0, 1]), 2).sum().backward()
    assert values.grad[:3].sum() == 1
    assert values.grad[2] == 0
    assert values.grad[3] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_negative_values_stay_negative(dtype):
    values = torch.full((4, 2), -3.0, dtype=dtype)
    result = segment_max(values, torch.tensor([0, 1, 1, 0]), 2)
    assert result.dtype == dtype
    assert torch.equal(result, torch.full((2, 2), -3.0, dtype=dtype))


def test_infinite_and_nan_values_are_not_swallowed():
    values = torch.tensor([[-torch.inf], [torch.nan], [1.0]])
    result = segment_max(values, torch.tensor([0, 1, 1]), 2)
    assert result[0] == -torch.inf
    assert torch.isnan(result[1])


# torch-scatter is an optional extra: the parity tests exist only where it is installed.
if importlib.util.find_spec("torch_scatter") is not None:

    @pytest.mark.parametrize("device", ["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
    def test_torch_scatter_gives_equal_results(device):
        import torch_scatter

        generator = torch.Generator().manual_seed(0)
        values = torch.randn(500, 7, generator=generator).to(device)
        segment = torch.cat((torch.arange(60), torch.randint(60, (440,), generator=generator))).to(device)
        expected = torch_scatter.scatter_max(values, segment, dim=0, dim_size=60)[0]
        out = values.new_full((60, 7), -torch.inf)
        native = out.scatter_reduce(0, segment[:, None].expand_as(values), values, "amax")
        assert torch.equal(segment_max(values, segment, 60), expected)
        assert torch.equal(native, expected)
