"""A student as one ships it: the graphs compute what PyTorch does, the folder is whole, and enough."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from common.base.config import write_yaml
from common.base.devices import CPU
from common.scans.dataset import evenly
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.predictor import Predictor
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.shipping.card import model_card
from stage2_train_student.shipping.engines import at_points, on_grid
from stage2_train_student.shipping.graphs import GraphInputs, fused
from stage2_train_student.shipping.run_exported import ExportedStudent
from stage2_train_student.shipping.sparse_student import SparseStudent
from stage2_train_student.students.birds_eye_unet import DoubleConvolution
from stage2_train_student.students.polarnet import PolarNet
from stage2_train_student.students.student import Student, StudentSettings
from stage2_train_student.training.experiment import new_student
from stage2_train_student.training.runs import load_student, run_settings, run_weights
from tests.golden.golden_files import golden_scan, label_map, scans_folder
from tests.shared.dataset_writer import street_scan
from tests.shared.kitti import read_points
from tests.shared.reduced import STREET_GRID, command, fail, one_thread, reduced_experiment, succeed

SMALL = ("student.width=4", "student.point_channels=16", "student.compressed_channels=8")
NO_TEACHER = ("targets=none", *(f"distillation.{term}=0" for term in ("logit", "vpd", "lwd")))
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_path(sys.argv.pop(1), run_name="__main__")
assert not {"common", "stage2_train_student"} & set(sys.modules)
"""


def lived_in(student: Student) -> Student:
    """The student with statistics of batch norms as after some training."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in student.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 + 0.5)
    return student.eval()


def write_run(folder: Path, *overrides: str) -> Path:
    """A run with a small student."""
    settings: ExperimentSettings = reduced_experiment(STREET_GRID, *NO_TEACHER, *SMALL, *overrides)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(lived_in(new_student(settings, label_map())).published(), folder / "student_best.pt")
    write_yaml(settings, folder / "settings.yaml")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("shipping") / "run")


@pytest.fixture(scope="module")
def exported(run, streets) -> tuple[Path, str]:
    """An exported folder with eight-bit graphs, and what the command said."""
    to = run.parent / "shipped"
    words = ("export", run, "--to", to, "--licence", "CC0", "--int8", "--calibrate", streets, "--scans", 1)
    return to, succeed(command(stage_two, *words))


def student_and_batch(folder: Path) -> tuple[PolarNet, object, np.ndarray]:
    student, _ = load_student(run_settings(folder), run_weights(folder), CPU)
    points = read_points(scans_folder(), golden_scan())
    return student, on_grid(points, PolarGrid.named("polarnet", STREET_GRID)), points


def logits_of(student: torch.nn.Module, batch: object) -> torch.Tensor:
    with torch.inference_mode(), one_thread():
        return student(batch).voxel_logits


@pytest.mark.parametrize("form", ["whole", "padded"])
def test_graphs_compute_what_pytorch_does_on_a_real_scan(run, exported, form):
    student, batch, _ = student_and_batch(run)
    expected = logits_of(student, batch).numpy()
    inputs = {name: part.numpy() for name, part in GraphInputs.of(batch)._asdict().items()}
    if form == "whole":
        [found] = onnxruntime.InferenceSession(exported[0] / "student.onnx").run(["logits"], inputs)
    else:
        found = ExportedStudent(exported[0], threads=1).logits(*inputs.values())
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 1e-2
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999


def test_program_needs_neither_torch_nor_this_project(run, exported, tmp_path):
    student, batch, _ = student_and_batch(run)
    program = exported[0] / "run_exported.py"
    assert len(program.read_text().splitlines()) <= 60
    scan = scans_folder() / f"sequences/{golden_scan().sequence}/velodyne/{golden_scan().frame}.bin"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", WITHOUT_TORCH, program, scan, tmp_path / "labels.npy"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), at_points(logits_of(student, batch), batch))


def test_exported_folder_is_a_run_wherever_it_lies(run, exported, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in exported[0].iterdir():
        (moved / path.name).symlink_to(path)
    # What lies in the working folder goes first in settings: it must not be taken for the student's.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.yaml").write_text("nothing: true\n")
    student, batch, points = student_and_batch(run)
    predictor = Predictor.load(moved, "cpu")
    with one_thread():
        np.testing.assert_array_equal(predictor(points), at_points(logits_of(student, batch), batch))
    assert predictor.label_map == label_map()


def test_a_program_refuses_what_is_no_number(exported):
    with pytest.raises(ValueError, match="NaN, infinity"):
        ExportedStudent(exported[0], threads=1)(np.full((2, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    ("name", "size", "said"), [("scan.npy", 32, "scan.bin labels.npy"), ("cut.bin", 35, "multiple")]
)
def test_program_reads_whole_scans_alone(exported, tmp_path, name, size, said):
    (tmp_path / name).write_bytes(bytes(size))
    words = [sys.executable, exported[0] / "run_exported.py", tmp_path / name, tmp_path / "labels.npy"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "labels.npy").exists()


@pytest.mark.parametrize("lacking", ["grid", "shape", "pillar_channels"])
def test_a_program_names_what_its_parameters_lack(tmp_path, lacking):
    numbers: dict[str, Any] = {"grid": {"minimum": [0], "maximum": [1], "shape": [2]}, "pillar_channels": 8}
    (numbers["grid"] if lacking == "shape" else numbers).pop(lacking)
    (tmp_path / "parameters.json").write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=f"parameters.json lacks '{lacking}': write the folder again with export"):
        ExportedStudent(tmp_path)


def test_parameters_are_all_that_a_program_needs(exported):
    numbers = json.loads((exported[0] / "parameters.json").read_text())
    grid = PolarGrid.named("polarnet", STREET_GRID)
    assert numbers["grid"]["shape"] == list(STREET_GRID)
    assert numbers["grid"]["minimum"] == list(grid.minimum)
    assert [one["name"] for one in numbers["classes"]] == label_map().names
    assert len(numbers["point_features"]) == 9
    assert len(numbers["student_sha256"]) == 64


def test_eight_bits_never_come_without_their_table(exported):
    to, said = exported
    card = (to / "README.md").read_text()
    for text in (said, card):
        assert "points changed" in text
        assert "onnxruntime int8" in text
        assert "sparse float32" in text
    assert (to / "map_int8.onnx").stat().st_size < (to / "map.onnx").stat().st_size
    assert "| licence | CC0 |" in card
    assert "Not evaluated" in card
    assert "| `student.onnx` | `point_features`" in card
    assert "engine: " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--int8",), "go together"),
        (("--int8", "--no-onnx", "--calibrate", "nowhere"), "need ONNX graphs"),
    ],
)
def test_quantising_without_scans_is_refused(run, tmp_path, words, message):
    assert message in fail(command(stage_two, "export", run, "--to", tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays_as_it_is(run, exported):
    before = sorted(path.name for path in exported[0].iterdir())
    assert "is there already" in fail(command(stage_two, "export", run, "--to", exported[0]))
    assert sorted(path.name for path in exported[0].iterdir()) == before
    assert "name a folder" in fail(command(stage_two, "export", run, "--to", "."))


def test_of_two_exports_at_once_the_later_one_says_that_the_folder_is_there(run, tmp_path, monkeypatch):
    to = tmp_path / "out"

    def card(*given: Any) -> str:
        to.mkdir()
        (to / "student.safetensors").touch()
        return model_card(*given)

    monkeypatch.setattr("stage2_train_student.shipping.export.model_card", card)
    said = fail(command(stage_two, "export", run, "--to", to, "--no-onnx"))
    assert f"{to}: Directory not empty. It is there already: choose another folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_an_export_that_failed(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text("{}")
    assert "not a report" in fail(command(stage_two, "export", run, "--to", tmp_path / "out", "--no-onnx"))
    (run / "evaluation.json").unlink()
    for damaged in ("[]", "{", '{"machine": "one", "scans": 1, "tables": [[]], "verdicts": []}'):
        (run / "latency.json").write_text(damaged)
        said = fail(command(stage_two, "export", run, "--to", tmp_path / "out", "--no-onnx"))
        assert "latency.json: these values cannot be used" in said
        assert "run latency again" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "student",
    [
        ("student.network=tests.extend.toy_student:LinearStudent", "student.options={width: 8}"),
        ("student.network=cylinder3d", "student.options={base: 4, point_channels: 16, voxel_channels: 4}"),
    ],
    ids=["own", "cylinder3d"],
)
def test_other_students_are_written_without_graphs(student, tmp_path):
    run = write_run(tmp_path / "run", *student)
    assert "only polarnet can" in fail(command(stage_two, "export", run, "--to", tmp_path / "out"))
    succeed(command(stage_two, "export", run, "--to", tmp_path / "out", "--no-onnx"))
    cloud, _ = street_scan(50, seed=3)
    with one_thread():
        expected, found = (Predictor.load(folder, "cpu").predict(cloud) for folder in (run, tmp_path / "out"))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert ".onnx" not in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_latency_names_an_engine_and_the_card_holds_its_tables(run, exported, streets, tmp_path):
    words = ("latency", run, "--data", streets, "--onnx", exported[0], "--scans", 1, "--repeats", 2)
    said = succeed(command(stage_two, *words))
    for word in ("reading", "labels back to points", "onnxruntime int8", "engine: ", "10 Hz", "20 Hz", "1 thread"):
        assert word in said
    succeed(command(stage_two, "export", run, "--to", tmp_path / "again", "--no-onnx"))
    assert "labels back to points" in (tmp_path / "again" / "README.md").read_text()
    (run / "latency.json").unlink()


def test_a_graph_in_place_of_another_is_refused(run, exported, streets, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(exported[0], folder)
    shutil.copy(folder / "map_int8.onnx", folder / "map.onnx")
    said = fail(command(stage_two, "latency", run, "--data", streets, "--onnx", folder, "--scans", 1))
    assert f"{folder / 'map.onnx'}: is not as export wrote it (SHA256SUMS)" in said


def test_latency_takes_the_graphs_of_this_student_alone(run, exported, streets, tmp_path):
    for nothing in (tmp_path, exported[0] / "missing.onnx"):
        assert "no exported student" in fail(command(stage_two, "latency", run, "--data", streets, "--onnx", nothing))
    other = write_run(tmp_path / "other", "student.width=8")
    assert "of another student" in fail(command(stage_two, "latency", other, "--data", streets, "--onnx", exported[0]))


def narrow_student(width: int = 4) -> PolarNet:
    return PolarNet(StudentSettings(point_channels=16, compressed_channels=8, width=width), 16, 5)


@pytest.mark.parametrize("grid", [STREET_GRID, (33, 21, 16), (16, 50, 16)])
@pytest.mark.parametrize(("points", "width"), [(1, 4), (700, 4), (700, 16)])
def test_sparse_student_computes_the_same_on_any_grid(grid, points, width):
    student = lived_in(narrow_student(width))
    cloud, _ = street_scan(points, seed=3)
    batch = on_grid(cloud, PolarGrid.named("polarnet", grid))
    with torch.inference_mode(), one_thread():
        torch.testing.assert_close(SparseStudent(student)(batch), student(batch).voxel_logits, rtol=1e-4, atol=1e-5)
        found = SparseStudent(student, torch.bfloat16)(batch)
    assert found.dtype is torch.float32
    assert (found - logits_of(student, batch)).norm() < 0.1 * found.norm()


def test_fusing_leaves_the_student_as_it_was():
    student = lived_in(narrow_student())
    names = list(student.state_dict())
    copy = fused(student)
    assert list(student.state_dict()) == names
    assert sum("running_mean" in name for name in copy.state_dict()) == 2


def test_fused_weights_are_rounded_once():
    student = lived_in(narrow_student())
    convolution, norm, _ = next(one for one in student.modules() if isinstance(one, DoubleConvolution)).conv1
    merged, _ = next(one for one in fused(student).modules() if isinstance(one, DoubleConvolution)).conv1
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = (convolution.weight.double() * factor[:, None, None, None]).detach().numpy()
    found = merged.weight.detach().numpy()
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= 0.5001 * np.spacing(np.abs(found))).all()


def test_scans_are_spread_evenly():
    scans = [ScanId("00", f"{number:06d}") for number in range(10)]
    assert evenly(scans, 3) == [scans[0], scans[3], scans[6]]
    assert evenly(scans[:2], 3) == scans[:2]
