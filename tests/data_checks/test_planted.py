"""A set with planted faults, as a new user has it: the doctor notes what was planted, and the set can be trained on."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from common.base.config import load_settings
from common.scans.dataset import Dataset, GridSettings, open_dataset
from common.scans.formats.files import FilesSettings
from common.scans.label_map import LabelMap, load_label_map
from polar_distill import program
from stage1_dump_teacher import doctor as doctors
from stage1_dump_teacher.data_checks.looking import look, reference_of
from tests.golden.golden_files import scans_folder
from tests.shared.planted_scans import LABELS, SCANS, Planted, write_planted
from tests.shared.reduced import DATASET, STREET_GRID, command, next_command, settings_words, succeed

FAULTS = {field.name for field in fields(Planted)}
FIVE = ["x", "y", "z", "intensity", "ring"]
TINY_TEACHER = ("widths={base: 4, point_channels: 16, voxel_channels: 8}", "epochs=1", "validate_on=[val]")
TINY_STUDENT = ("student.point_channels=16", "student.compressed_channels=8", "student.width=8", "epochs=1")


def described(root: Path, columns: list[str]) -> Dataset:
    """The set as it is: nothing scaled, nothing left out."""
    options = {"scans": SCANS, "labels": LABELS, "columns": columns}
    label_map = load_label_map(DATASET).model_copy(update={"format": "files", "options": options})
    return Dataset.open(root, label_map)


def noted(dataset: Dataset, teacher: Path | None = None) -> set[str]:
    """Names of the lines that are not in order."""
    return {name for name, line in look(dataset, GridSettings(), reference_of(teacher)) if line.status != "ok"}


@pytest.mark.parametrize("absent", [None, *sorted(FAULTS)])
def test_what_is_noted_is_what_was_planted(tmp_path, absent):
    planted = Planted() if absent is None else replace(Planted(), **{absent: False})
    write_planted(tmp_path, planted)
    columns = FIVE if planted.columns else FIVE[:4]
    assert noted(described(tmp_path, columns)) == FAULTS - {"columns", absent}
    assert noted(described(tmp_path, FIVE[:4])) == ({"columns"} if planted.columns else FAULTS - {"columns"})


def test_nothing_is_noted_of_a_set_without_faults_and_of_real_scans(tmp_path, semantic_kitti):
    write_planted(tmp_path, Planted(**dict.fromkeys(FAULTS, False)))
    assert noted(described(tmp_path, FIVE[:4])) == set()
    assert noted(Dataset.open(scans_folder(), semantic_kitti)) == set()


@pytest.fixture(scope="module")
def planted_set(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("planted") / "my_sensor"
    write_planted(root, Planted())
    return root


@pytest.fixture(scope="module")
def written(planted_set) -> Path:
    """What `new-dataset` makes of the set."""
    path = planted_set.parent / "my_sensor.yaml"
    output = succeed(command(program, "new-dataset", planted_set, "--out", path))
    for part in ("4 in 2 sequences", "x, y, z, intensity, ring", "largest 198", "scale 0.005", "left out", "next: "):
        assert part in output, output
    return path


def test_the_description_says_what_was_planted(written, planted_set):
    label_map = load_settings(LabelMap, written)
    options = FilesSettings(**label_map.options)
    assert (options.scans, options.labels, options.columns) == (SCANS, LABELS, FIVE)
    assert (options.reflectance_scale, options.drop_origin) == (0.005, True)
    assert label_map.names == load_label_map(DATASET).names
    assert label_map.splits == {"train": ["00"], "val": ["01"], "test": []}
    assert 0.5 < label_map.content[0] < 0.7
    # What the file mends is no fault any more.
    assert noted(open_dataset(planted_set, written)) == FAULTS - {"columns", "reflectance", "origin"}


def test_a_new_user_gets_from_files_to_an_evaluated_student(written, planted_set, tmp_path, monkeypatch):
    # Its process takes longer than all the rest here, and has tests of its own.
    monkeypatch.setattr(doctors, "check_spconv", lambda _device: doctors.check_zarr())
    doctor = command(program, "doctor", "--data", planted_set, "--dataset", written, "--cache", tmp_path / "cache")
    assert "note     ground         at -1.1" in doctor.output
    pasted = doctor.output[doctor.output.index("  grid:") :].partition("\n\n")[0]
    volume = yaml.safe_load(pasted)["grid"]["volume"]
    assert volume["z"] == [-2.5, 2]
    same = (f"dataset={written}", f"grid.volume={volume}", f"grid.shape={list(STREET_GRID)}")
    on_cpu = ("--data", planted_set, "--device", "cpu")
    succeed(command(program, "class-frequencies", "--data", planted_set, "--dataset", written, "--write"))
    teacher, cache, run = tmp_path / "teacher", tmp_path / "cache", tmp_path / "run"
    words = settings_words(*same, *TINY_TEACHER)
    trained = succeed(command(program, "train-teacher", *on_cpu, "--run", teacher, *words))
    checkpoint = teacher / "teacher_last.safetensors"
    # A teacher of one's own knows these scans.
    assert noted(open_dataset(planted_set, written), checkpoint) == set()
    # Each next command as it is printed, but for where it writes and how fast it is.
    dump = ("--cache", cache, "--device", "cpu", *settings_words("profile=train", "splits=[train]"))
    dumped = succeed(command(program, *next_command(trained), *dump))
    assert "3 scan-views written" in dumped
    train = ("--run", run, "--device", "cpu", *settings_words(*TINY_STUDENT))
    evaluate = next_command(succeed(command(program, *next_command(dumped), *train)))
    assert "mIoU" in succeed(command(program, *evaluate, "--device", "cpu"))
