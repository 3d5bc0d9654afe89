"""Teachers built once per session from the golden weights, through the project's own checkpoint loader."""

import pytest
import torch

from common.networks.cylinder3d import FEATURE_LAYERS, TeacherOutputs
from common.targets.teacher_targets import PillarFeatures
from stage1_dump_teacher.teachers.cylinder3d import load_teacher, to_pillars
from tests.golden.golden_files import golden_batch, golden_weights

ALL_LAYERS = ("vox", "ctx", "up1e", *FEATURE_LAYERS)


def teacher_outputs(size: str, folder) -> TeacherOutputs:
    """Outputs of the golden teacher of one size on the golden scan, loaded from a published-layout file."""
    path = folder / f"{size}.pt"
    torch.save(golden_weights(f"teacher_{size}"), path)
    teacher = load_teacher(path, torch.device("cpu"))
    with torch.inference_mode():
        return teacher.model(golden_batch(size), ALL_LAYERS)


@pytest.fixture(scope="session")
def teacher_full(tmp_path_factory) -> TeacherOutputs:
    """The full-size golden teacher on the golden scan."""
    return teacher_outputs("full", tmp_path_factory.mktemp("teacher_full"))


@pytest.fixture(scope="session")
def teacher_reduced(tmp_path_factory) -> TeacherOutputs:
    """The reduced golden teacher on the golden scan."""
    return teacher_outputs("reduced", tmp_path_factory.mktemp("teacher_reduced"))


@pytest.fixture(scope="session")
def teacher_full_layers(teacher_full) -> dict[str, PillarFeatures]:
    """Pillar features of every layer that a student can be distilled from."""
    return {name: to_pillars(teacher_full.layers[name]) for name in FEATURE_LAYERS}
