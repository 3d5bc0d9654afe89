"""`export`: a folder that one ships, whole or not at all."""

import shutil
from pathlib import Path

import torch

from common.base.config import write_yaml
from common.base.content_hash import sealed_safetensors
from common.base.devices import CPU
from common.base.errors import SettingsError
from common.base.files import flush_to_disk, naming, temporary_beside
from common.scans.dataset import Dataset, evenly
from common.scans.label_map import LabelMap
from common.training.recorder import SETTINGS_FILE
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.shipping import run_exported
from stage2_train_student.shipping.card import CARD_FILE, GRAPHS, model_card
from stage2_train_student.shipping.engines import INT8, Comparison, compare, on_grid, onnx_engines, torch_engines
from stage2_train_student.shipping.graphs import check_exportable
from stage2_train_student.shipping.onnx_files import check_installed, write_graphs, write_int8
from stage2_train_student.shipping.parameters import parameters_of, write_parameters
from stage2_train_student.students.student import Student
from stage2_train_student.training.checksums import file_hash, write_sums
from stage2_train_student.training.runs import EXPORTED_STUDENT, load_student, run_settings, run_weights

LONGEST_HASH = 8


def export(
    run: Path, to: Path, licence: str, onnx: bool = True, calibration: Dataset | None = None, scans: int = 4
) -> Comparison | None:
    """Write a run's student to a folder: weights, settings, graphs, parameters, a program and a model card.

    Args:
        run: folder of the run.
        to: the folder to make.
        licence: of the weights, for the card.
        onnx: write graphs.
        calibration: quantise to eight bits as well, with scans of this dataset; what these change and win is returned.
        scans: how many of it calibrate, and how many others compare.

    Raises:
        SettingsError: the folder is not empty, the student has no graph, or two of its classes have the same name.
        CheckpointError: the run has no student that fits its settings.
    """
    if not to.name:
        raise SettingsError(f"--to {to}: name a folder to make; the working folder is there already")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise SettingsError(f"--to {to}: is there already; choose another folder, or remove it")
    settings, weights = run_settings(run), run_weights(run)
    student, label_map = load_student(settings, weights, CPU)
    if onnx:
        check_exportable(student)
        check_installed()
    temporary, comparison = temporary_beside(to), None
    with naming(to, temporary):
        temporary.mkdir(parents=True)
        try:
            write_student(student, settings, label_map, temporary)
            write_parameters(parameters_of(student, settings, label_map), temporary)
            if onnx:
                write_graphs(check_exportable(student), settings.grid.shape, temporary)
                shutil.copy(run_exported.__file__, temporary / "run_exported.py")
            if calibration is not None:
                comparison = quantised(student, settings, calibration, temporary, scans)
            card = model_card(run, settings, label_map, student, licence, comparison)
            (temporary / CARD_FILE).write_text(card + (GRAPHS if onnx else ""), encoding="utf-8")
            write_sums(temporary, without=CARD_FILE)
            for path in temporary.iterdir():
                flush_to_disk(path)
            flush_to_disk(temporary)
            temporary.replace(to)
            flush_to_disk(to.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return comparison


def write_student(student: Student, settings: ExperimentSettings, label_map: LabelMap, folder: Path) -> None:
    """Weights, settings and the dataset's description: what every command takes for a run."""
    (folder / EXPORTED_STUDENT).write_bytes(sealed_safetensors(student.published()))
    description = folder / "dataset.yaml"
    write_yaml(label_map, description)
    # The working folder goes before that of the settings: the same name there must be the same file.
    named = Path(f"dataset_{file_hash(description)[:LONGEST_HASH]}.yaml")
    description.rename(folder / named)
    write_yaml(settings.model_copy(update={"dataset": named}), folder / SETTINGS_FILE)


def quantised(student: Student, settings: ExperimentSettings, dataset: Dataset, folder: Path, scans: int) -> Comparison:
    """Write eight-bit graphs, and compare them with the student on other scans, where there are others."""
    grid, found = settings.grid.grid(), dataset.select(dataset.files.sequences()).scans
    chosen = evenly(found, scans)
    write_int8(folder, (on_grid(dataset.files.points(scan), grid) for scan in chosen))
    others = evenly([scan for scan in found if scan not in chosen], scans) or chosen
    engines = [*torch_engines(student), *onnx_engines(folder, torch.get_num_threads())]
    comparison = compare(engines, dataset, others, grid, repeats=2 if len(others) == 1 else 1)
    assert INT8 in comparison.engines
    return comparison
