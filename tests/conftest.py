"""Fixtures that many tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from common.base.config import write_yaml
from common.scans.label_map import LabelMap, load_label_map
from tests.golden.golden_files import golden_weights, scans_folder
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import REAL_GRID, STREET_GRID, dump, reduced_experiment, succeed
from tests.shared.small_runs import write_small_run
from tests.shared.small_stores import EXACT_FULL, TRAIN, dump_words, stage_one

# The same examples on every run, and no failure for a machine that is slow for a moment.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

# At these sizes several threads only wait for each other, here and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

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


@pytest.fixture(scope="session")
def reduced_teacher(tmp_path_factory) -> Path:
    """The golden reduced teacher as a published-layout checkpoint; it runs on any grid."""
    path = tmp_path_factory.mktemp("teacher") / "reduced.pt"
    torch.save(golden_weights("teacher_reduced"), path)
    return path


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory, reduced_teacher) -> Path:
    """A dump of the real scans, labelled or not: three views, float32."""
    cache = tmp_path_factory.mktemp("real") / "cache"
    succeed(dump(scans_folder(), reduced_teacher, cache, REAL_GRID, "splits=[train, test]", "views.count=3"))
    return cache


@pytest.fixture(scope="session")
def streets(tmp_path_factory) -> Path:
    """A dataset of made-up streets: five scans to train on, one to validate on, two without labels."""
    root = tmp_path_factory.mktemp("streets") / "dataset"
    write_dataset(root, {"00": 5, "08": 1, "11": 2}, unlabelled=("11",))
    return root


@pytest.fixture(scope="session")
def street_cache(tmp_path_factory, streets, reduced_teacher) -> Path:
    """A dump of the made-up streets: two views, float32, voxel features too. Read only: copy it to change it."""
    cache = tmp_path_factory.mktemp("streets") / "cache"
    options = ("splits=[train, test]", "views.count=2", "voxel_features=true")
    succeed(dump(streets, reduced_teacher, cache, STREET_GRID, *options))
    return cache


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A run that has saved the golden reduced student, for made-up streets. Read only."""
    return write_small_run(tmp_path_factory.mktemp("small") / "runs" / "full")


@pytest.fixture
def runs(tmp_path) -> Iterator[Path]:
    """A folder for training runs, removed after the test: a run weighs some 200 MB."""
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


@pytest.fixture(scope="session")
def store_scans(tmp_path_factory) -> Path:
    """A dataset of made-up streets for the stores below."""
    root = tmp_path_factory.mktemp("stores") / "dataset"
    write_dataset(root, {"00": 3, "08": 1}, points=800)
    return root


@pytest.fixture(scope="session")
def exact_store(tmp_path_factory, store_scans, reduced_teacher) -> Path:
    """Two views of every scan with voxel features, float32. Read only."""
    cache = tmp_path_factory.mktemp("stores") / "exact"
    succeed(stage_one(*dump_words(store_scans, reduced_teacher, cache, *EXACT_FULL)))
    return cache


@pytest.fixture(scope="session")
def train_store(tmp_path_factory, store_scans, reduced_teacher) -> Path:
    """Two views of every scan as a student reads them. Read only."""
    cache = tmp_path_factory.mktemp("stores") / "train"
    succeed(stage_one(*dump_words(store_scans, reduced_teacher, cache, *TRAIN)))
    return cache


@pytest.fixture(scope="module")
def student_file(tmp_path_factory) -> Path:
    """The golden reduced student, as a published-layout state dict."""
    path = tmp_path_factory.mktemp("student") / "published.pt"
    torch.save(golden_weights("student_reduced", "student."), path)
    return path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """An experiment file that fits the student on made-up streets."""
    path = tmp_path_factory.mktemp("experiment") / "streets.yaml"
    write_yaml(reduced_experiment(STREET_GRID), path)
    return path
