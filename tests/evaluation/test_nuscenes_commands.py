"""A nuScenes-shaped dataset through the real commands: dump, train, evaluate, predict, submission."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.base.command_options import TEACHER_CONFIG
from common.base.config import load_settings
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import to_published
from common.scans.label_map import load_label_map
from common.targets.store import TargetStore
from polar_distill import program
from stage1_dump_teacher import doctor as doctors
from stage1_dump_teacher.data_checks.survey import Survey
from stage2_train_student.students.polarnet import PolarNet
from stage2_train_student.students.student import StudentSettings
from tests.shared.nuscenes_writer import LABEL_MAP, lidar_token, write_nuscenes
from tests.shared.reduced import STREET_GRID, command, fail, settings_words, succeed

GRID = f"grid.shape={list(STREET_GRID)}"
STUDENT = ("student.point_channels=16", "student.compressed_channels=8", "student.width=8")
TRAIN, VAL, TEST = "scene-0061", "scene-0103", "scene-0077"


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """Tables are cached in a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The mini version, and the test version without labels beside it."""
    root = tmp_path_factory.mktemp("nuscenes") / "nuscenes"
    write_nuscenes(root, "v1.0-mini", {TRAIN: 2, VAL: 2})
    write_nuscenes(root, "v1.0-test", {TEST: 1}, columns=48, labelled=False)
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A narrow Cylinder3D in the layout of the published nuScenes checkpoint: 17 classes, nine point features."""
    torch.manual_seed(0)
    widths = TeacherWidths(point_channels=16, voxel_channels=8, base=4, classes=17)
    published = to_published(Cylinder3D(widths))
    assert published["cylinder_3d_spconv_seg.logits.weight"].shape == (3, 3, 3, 16, 17)
    assert published["cylinder_3d_generator.PPmodel.0.weight"].shape == (9,)
    path = tmp_path_factory.mktemp("teacher") / "nuscenes.pt"
    torch.save(published, path)
    return path


@pytest.fixture(scope="module")
def run(data, teacher, tmp_path_factory) -> Path:
    """A student, trained from a cache that was dumped with nothing said but the dataset."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--data", data, "--cache", folder / "cache", "--device", "cpu"]
    dumped = command(program, "dump", *words, "--teacher", teacher, *settings_words("dataset=nuscenes", GRID))
    assert "4 scan-views written" in succeed(dumped)
    assert "--experiment full_nuscenes --set dataset=nuscenes" in dumped.output
    settings = settings_words(GRID, *STUDENT, "epochs=1", "batch_size=1")
    trained = command(program, "train", *words, "--experiment", "full_nuscenes", "--run", folder / "run", *settings)
    assert "2 steps, 1 epoch finished; best mIoU" in succeed(trained)
    return folder / "run"


def test_the_store_is_of_the_volume_and_the_scans_of_nuscenes(run):
    store = TargetStore.open(run.parent / "cache")
    assert (store.identity.grid.minimum[2], store.identity.grid.maximum[2]) == (-5, 3)
    assert len(store.identity.classes) == 17
    assert {scan.sequence for scan, _ in store.finished()} == {TRAIN, VAL}


def test_evaluation_is_that_of_the_official_rules_on_the_files_of_predict(data, run, tmp_path):
    words = ["--data", data, "--run", run, "--device", "cpu"]
    evaluated = succeed(command(program, "evaluate", *words, "--json", tmp_path / "numbers.json"))
    assert "as the benchmark" in evaluated
    succeed(command(program, "predict", *words, "--split", "mini_val", "--out", tmp_path))
    learning_map = load_label_map(LABEL_MAP).learning_map
    counts = np.zeros((17, 17))
    for frame in range(2):
        token = lidar_token(VAL, frame)
        raw = np.fromfile(data / f"lidarseg/v1.0-mini/{token}_lidarseg.bin", np.uint8)
        predicted = np.fromfile(tmp_path / f"lidarseg/mini_val/{token}_lidarseg.bin", np.uint8)
        assert ((predicted > 0) & (predicted < 17)).all()
        np.add.at(counts, ([learning_map[one] for one in raw.tolist()], predicted), 1)
    counts[0], counts[:, 0] = 0, 0
    with np.errstate(invalid="ignore"):
        shares = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["miou_benchmark"] == pytest.approx(np.nanmean(shares))
    assert numbers["points"] == counts.sum()
    assert list(numbers["iou"].values()) == pytest.approx([None if np.isnan(one) else one for one in shares[1:]])
    assert numbers["miou_all_classes"] < numbers["miou_benchmark"]


def test_the_submission_holds_the_test_scenes_as_the_benchmark_wants_them(data, run, tmp_path):
    words = ["predict", "--data", data, "--run", run, "--device", "cpu"]
    output = succeed(command(program, *words, "--zip", tmp_path / "lidarseg.zip"))
    assert "1 prediction file under" in output
    assert "the zip lacks scene-0078" in output
    assert "and 144 more" in output
    with zipfile.ZipFile(tmp_path / "lidarseg.zip") as archive:
        folders = ["lidarseg/", "lidarseg/test/", "test/"]
        name = f"lidarseg/test/{lidar_token(TEST, 0)}_lidarseg.bin"
        assert sorted(archive.namelist()) == sorted([*folders, name, "test/submission.json"])
        meta = json.loads(archive.read("test/submission.json"))["meta"]
        assert {key for key, used in meta.items() if used} == {"use_lidar"}
        assert set(meta) == {"use_camera", "use_lidar", "use_radar", "use_map", "use_external"}
        [scan] = (data / "samples/LIDAR_TOP").glob(f"{TEST}__*")
        assert len(archive.read(name)) == scan.stat().st_size / 20
    succeed(command(program, *words, "--out", tmp_path / "all"))
    found = sorted(str(path.parent.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*.bin"))
    assert found == ["lidarseg/test", *["lidarseg/train"] * 2, *["lidarseg/val"] * 2]
    assert len(list((tmp_path / "all").rglob("submission.json"))) == 3


def test_another_volume_is_refused_with_the_words_to_add(data, teacher, tmp_path):
    words = ["--data", data, "--cache", tmp_path / "cache", "--device", "cpu"]
    settings = settings_words("dataset=nuscenes", GRID, *STUDENT)
    trained = command(program, "train", *words, "--experiment", "full", "--run", tmp_path / "run", *settings)
    assert "polarnet is not the volume of checkpoints of 'nuscenes'. Add --set grid.volume=nuscenes" in fail(trained)
    volume = settings_words("dataset=nuscenes", GRID, "grid.volume=cylinder3d")
    assert "grid.volume=nuscenes" in fail(command(program, "dump", *words, "--teacher", teacher, *volume))
    settings = settings_words("dataset=nuscenes", GRID)
    evaluated = ["evaluate", *words[:2], "--device", "cpu", "--teacher", teacher, "--experiment", "full", *settings]
    assert "grid.volume=nuscenes" in fail(command(program, *evaluated))
    taught = command(program, "train-teacher", *words[:2], "--run", tmp_path / "teacher", "--device", "cpu", *settings)
    assert "grid.volume=nuscenes" in fail(taught)


def test_published_polarnet_weights_of_seventeen_classes_load_strictly(data, tmp_path):
    torch.manual_seed(0)
    widths = StudentSettings(point_channels=16, compressed_channels=8, width=8)
    published = PolarNet(widths, STREET_GRID[2], 17).state_dict()
    assert published["BEV_model.network.outc.conv.weight"].shape[0] == 17 * STREET_GRID[2]
    torch.save(published, tmp_path / "polarnet.pt")
    settings = settings_words(GRID, *STUDENT)
    words = ["predict", "--data", data, "--experiment", "full_nuscenes", "--device", "cpu", *settings]
    words += ["--split", VAL, "--out", tmp_path / "out"]
    assert "2 prediction files" in succeed(command(program, *words, "--weights", tmp_path / "polarnet.pt"))
    torch.save({**published, "PPmodel.0.weight": torch.ones(7)}, tmp_path / "seven.pt")
    assert "PPmodel.0.weight" in fail(command(program, *words, "--weights", tmp_path / "seven.pt"))


def test_the_doctor_takes_volume_and_classes_of_the_dataset_that_is_named(data, teacher, tmp_path):
    named, kept = Path("nuscenes"), tmp_path / "kept.yaml"
    found = dict(doctors.about_scans(data, named, TEACHER_CONFIG, None, doctors.Comparing(None, kept, None)))
    assert "problem" not in {line.status for line in found.values()}, found
    assert load_settings(Survey, kept).grid.volume == "nuscenes"
    assert doctors.check_teacher(teacher, TEACHER_CONFIG, named).status == "ok"
    assert doctors.dataset_of(Path("configs/teachers/cylinder3d_nuscenes.yaml")).name == "nuscenes.yaml"
