"""A small dataset to dump, and where to."""

from pathlib import Path

import pytest

from tests.shared.dataset_writer import write_dataset


@pytest.fixture
def data(tmp_path) -> Path:
    """Three scans that a test may spoil."""
    write_dataset(tmp_path / "dataset", {"00": 3}, points=600)
    return tmp_path / "dataset"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"
