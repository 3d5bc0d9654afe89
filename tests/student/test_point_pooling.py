"""The widest layer of the point network, pooled without being built."""

import pytest
import torch

from common.scans.scatter import segment_max
from stage2_train_student.students import point_pooling
from stage2_train_student.students.point_pooling import pooled_linear, segment_chunks


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_pooling_a_linear_layer_is_the_maximum_of_its_output(rows, monkeypatch):
    monkeypatch.setattr(point_pooling.segment_chunks, "__defaults__", (rows,))
    generator = torch.Generator().manual_seed(rows)
    segment = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 4])
    assert len(list(segment_chunks(segment, 5))) == {1: 5, 3: 4, 4: 3, 100: 1}[rows]
    numbers = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((12, 6), (7, 6), (7,))]
    features, weight, bias = (value.requires_grad_() for value in numbers)
    pooled = pooled_linear(features, weight, bias, segment, 5)
    torch.testing.assert_close(pooled, segment_max(torch.nn.functional.linear(features, weight, bias), segment, 5))
    assert torch.autograd.gradcheck(lambda *inputs: pooled_linear(*inputs, segment, 5), (features, weight, bias))
