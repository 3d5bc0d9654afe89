"""A batch of which a batch norm cannot take statistics is named by its scans."""

import pytest
import torch
from torch import nn

from common.base.errors import TrainingError
from common.scans.scan_id import ScanId
from common.training import processes
from common.training.shared_batch_norm import share_batch_norm
from common.training.small_batches import naming_small_batches
from tests.dump.test_train_teacher import train_teacher
from tests.shared.dataset_writer import street_scan, write_dataset, write_scan
from tests.shared.reduced import fail, succeed, train

POINT = ScanId("00", "000001")
ALONE = ("train=['00']", "validate_on=[]", "batch_size=1", "epochs=1")
SAID = f"a batch of scans {POINT} cannot be trained on: a batch norm found one value where it needs two"


@pytest.fixture
def one_point(tmp_path):
    """Two scans, of which one has a single point."""
    write_dataset(tmp_path, {"00": 2}, points=400)
    points, labels = street_scan(400)
    write_scan(tmp_path, POINT, points[:1], labels[:1])
    return tmp_path


def test_a_student_names_the_scan_of_one_point(one_point, runs):
    assert SAID in fail(train(one_point, None, runs / "alone", *ALONE, "student.width=4", name="baseline"))
    succeed(train(one_point, None, runs / "both", *ALONE, "student.width=4", "batch_size=2", name="baseline"))


def test_a_teacher_names_the_scan_of_one_point(one_point, runs):
    assert SAID in fail(train_teacher(one_point, runs / "run", *ALONE))


def test_a_batch_norm_of_several_processes_says_it_as_pytorch_does():
    """Unbiased, the variance of one value is 0 / 0: it would have gone into the running statistics."""
    shared = nn.Sequential(nn.BatchNorm1d(3))
    share_batch_norm(shared, processes.ALONE)
    with pytest.raises(TrainingError, match=f"a batch of scans {POINT} cannot"), naming_small_batches([POINT]):
        shared(torch.ones(1, 3))
    assert torch.isfinite(shared(torch.randn(2, 3))).all()
    assert all(torch.isfinite(buffer).all() for buffer in shared.buffers())


def test_other_errors_are_left_as_they_are():
    with pytest.raises(ValueError, match="something else"), naming_small_batches([POINT]):
        raise ValueError("something else")
