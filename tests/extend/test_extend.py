"""A dataset, a teacher, a student and a loss of one's own, one file each, through the program's own commands.

No file of the product knows them: settings name their classes.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from polar_distill import program
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import DATASET, STREET_GRID, command, fail, settings_words, succeed

HERE = "tests.extend"
TOYS = {
    "format": f"{HERE}.toy_dataset:NumpyFiles",
    "teacher": f"{HERE}.toy_teacher:HeightTeacher",
    "student": f"{HERE}.toy_student:LinearStudent",
    "loss": f"{HERE}.toy_loss:AbsoluteDifference",
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """A folder with scans in the toy format, and settings that name the toys."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "scans").mkdir()
    for number, name in enumerate(("00-000000", "00-000001", "08-000000")):
        points, raw = street_scan(seed=number)
        np.save(folder / "scans" / f"{name}.npy", points)
        np.save(folder / "scans" / f"{name}.labels.npy", raw)
    description = yaml.safe_load(Path(DATASET).read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description | {"format": TOYS["format"]}))
    (folder / "teacher.txt").write_text("20")
    grid = {"volume": "polarnet", "shape": list(STREET_GRID)}
    same = {"dataset": str(folder / "dataset.yaml"), "grid": grid}
    float32 = dict.fromkeys(("pillar_features", "voxel_features", "logits"), "float32")
    dump = {"teacher": TOYS["teacher"], "layers": ["height"], "profile": "custom", "voxel_features": False}
    write(folder / "dump.yaml", **same, **dump, encoding=float32)
    train = same | {"student": {"network": TOYS["student"], "options": {"width": 8}}, "epochs": 1, "batch_size": 1}
    train["teacher"] = TOYS["teacher"]
    terms = {"logit": 1.0, "vpd": 0.0, "lwd": 0.0}
    write(folder / "full.yaml", **train, distillation=terms | {"others": {TOYS["loss"]: 0.5}})
    write(
        folder / "baseline.yaml", **train, targets="none", augmentation={"count": 1}, distillation=terms | {"logit": 0}
    )
    return folder


def write(path: Path, **settings: object) -> None:
    path.write_text(yaml.safe_dump(settings))


def words(folder: Path, name: str, *more: object) -> list[str]:
    return [name, "--data", str(folder / "scans"), "--device", "cpu", *map(str, more)]


def test_toys_are_dumped_trained_evaluated_predicted_and_compared(toys):
    teacher, cache, runs = toys / "teacher.txt", toys / "cache", toys / "runs"
    dumped = succeed(
        command(program, *words(toys, "dump", "--teacher", teacher, "--cache", cache, "--config", toys / "dump.yaml"))
    )
    assert "3 scan-views written" in dumped
    for name in ("baseline", "full"):
        options = ("--experiment", toys / f"{name}.yaml", "--run", runs / name, "--cache", cache)
        assert "2 steps, 1 epoch finished; best mIoU" in succeed(command(program, *words(toys, "train", *options)))
        evaluated = ("--run", runs / name, "--agreement", teacher)
        succeed(command(program, *words(toys, "evaluate", *evaluated)))
    lines = [json.loads(line) for line in (runs / "full" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["absolute"] > 0 and line["logit"] > 0 for line in lines if line["kind"] == "train")
    predicted = succeed(command(program, *words(toys, "predict", "--run", runs / "full", "--out", toys / "out")))
    assert "3 prediction files" in predicted
    succeed(command(program, "compare", runs, "--out", toys / "page.html"))
    page = (toys / "page.html").read_text()
    assert "absolute" in page
    assert "AbsoluteDifference" in page


def test_a_live_teacher_of_ones_own_serves_too(toys):
    settings = ("targets=online", "steps=1", "validate_on=[]")
    options = ("--experiment", toys / "full.yaml", "--run", toys / "online", "--teacher", toys / "teacher.txt")
    output = succeed(command(program, *words(toys, "train", *options, *settings_words(*settings))))
    assert "1 step," in output


def test_their_store_is_looked_after_by_what_the_settings_of_the_dump_name(toys, tmp_path):
    scans, cache = Path(shutil.copytree(toys / "scans", tmp_path / "scans")), tmp_path / "cache"
    same = ("--data", scans, "--teacher", toys / "teacher.txt", "--config", toys / "dump.yaml", "--cache", cache)
    on_cpu = (*same, "--device", "cpu")
    succeed(command(program, "dump", *on_cpu))
    verified = succeed(command(program, "verify", *on_cpu, "--live", 2))
    assert "3 of 3 scan-views checked: nothing wrong" in verified
    assert "All as the teacher says." in verified
    checked = command(program, "doctor", *same, "--dataset", toys / "dataset.yaml").output
    assert "tests.extend.toy_teacher:HeightTeacher" in checked
    assert "20 classes" in checked

    points = np.load(scans / "00-000001.npy")
    np.save(scans / "00-000001.npy", points + np.float32(0.1))
    assert "changed 00/000001 view 0" in " ".join(fail(command(program, "verify", *on_cpu)).split())
    assert "The store is whole." in succeed(command(program, "repair", *on_cpu))
    assert "nothing wrong" in succeed(command(program, "verify", *on_cpu, "--live", 3))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.network=pointnet", "unknown student 'pointnet'; choose from cylinder3d, polarnet"),
        (f"student.network={TOYS['loss']}", "has no class AbsoluteDifference that is a"),
        ("student.network=no.such.module:Student", "cannot be imported"),
        (
            "student.network=..my.module:Student",
            "unknown student '..my.module:Student'; choose from cylinder3d, polarnet",
        ),
        ("student.network=':Student'", "unknown student ':Student'; choose from cylinder3d, polarnet"),
        ("distillation.others={chamfer: 1.0}", "unknown distillation term 'chamfer'; choose from logit, lwd, point_"),
    ],
)
def test_names_of_nothing_are_refused_with_what_there_is(toys, setting, message):
    options = ("--experiment", toys / "full.yaml", "--run", toys / "refused", "--cache", toys / "cache")
    assert message in fail(command(program, *words(toys, "train", *options, *settings_words(setting))))


def test_formats_and_teachers_are_refused_likewise(toys):
    options = ("--teacher", toys / "teacher.txt", "--cache", toys / "none", "--config", toys / "dump.yaml")
    other = toys / "other.yaml"
    other.write_text((toys / "dataset.yaml").read_text().replace(TOYS["format"], "waymo"))
    for setting, message in (
        ("teacher=ptv3", "unknown teacher 'ptv3'; choose from cylinder3d"),
        (f"dataset={other}", "unknown format of a dataset 'waymo'; choose from files, nuscenes, semantic_kitti"),
    ):
        assert message in fail(command(program, *words(toys, "dump", *options, *settings_words(setting))))
