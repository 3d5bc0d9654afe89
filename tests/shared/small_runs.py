"""Runs that have saved the golden reduced student, without training one."""

from pathlib import Path

import torch

from common.base.config import write_yaml
from common.training.recorder import SETTINGS_FILE
from stage2_train_student.training.state import BEST_STUDENT
from tests.golden.golden_files import golden_weights
from tests.shared.reduced import STREET_GRID, reduced_experiment


def write_small_run(folder: Path, *overrides: str, grid: tuple[int, int, int] = STREET_GRID) -> Path:
    """A run's folder: settings with some overridden, and weights that fit them."""
    folder.mkdir(parents=True)
    write_yaml(reduced_experiment(grid, *overrides), folder / SETTINGS_FILE)
    torch.save(golden_weights("student_reduced", "student."), folder / BEST_STUDENT)
    return folder
