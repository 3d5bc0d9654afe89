"""Fixtures that many tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

from common.label_map import LabelMap, load_label_map
from tests.dataset_writer import write_dataset

# The same examples on every run, and no failure for a machine that is slow for a moment.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def semantic_kitti_yaml() -> Path:
    """The project's own description of SemanticKITTI."""
    return REPOSITORY / "configs" / "datasets" / "semantic_kitti.yaml"


@pytest.fixture(scope="session")
def semantic_kitti(semantic_kitti_yaml) -> LabelMap:
    """Classes and label map of SemanticKITTI."""
    return load_label_map(semantic_kitti_yaml)


@pytest.fixture
def sample_data(tmp_path) -> Path:
    """A dataset of made-up streets: two labelled training scans, one to validate on, one test scan without labels."""
    root = tmp_path / "dataset"
    write_dataset(root, {"00": 2, "08": 1, "11": 1}, unlabelled=("11",))
    return root
