"""Targets recorded elsewhere: the store that they make, what is refused, and the printed example."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.base.errors import DataError, SettingsError
from common.scans.dataset import Dataset
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore, apply_view, logits_of_points
from polar_distill import program
from stage1_dump_teacher.doctor import check_teacher
from stage1_dump_teacher.teachers.loading import load_named_teacher
from stage1_dump_teacher.teachers.recorded import RecordedTeacher, in_classes
from stage2_train_student.training.experiment import open_targets, student_data
from tests.shared.kitti import read_points
from tests.shared.reduced import (
    REPOSITORY,
    STREET_GRID,
    command,
    dump,
    dump_words,
    encoding_words,
    fail,
    read_all,
    reduced_experiment,
    succeed,
    train,
)

CPU = torch.device("cpu")
SCAN, POINTS, CLASSES = ScanId("00", "000000"), 6, 20
VIEWS = ("splits=[train, val]", "views.count=2")
LOGITS = "model: a friend's\nkind: logits\n"
PROBABILITIES = "model: a friend's\nkind: probabilities\n"


def write(folder: Path, scan: ScanId, rows: np.ndarray) -> Path:
    path = folder / scan.sequence / f"{scan.frame}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, store_scans, exact_store) -> Path:
    """Logits of the points of every scan, as the teacher of `exact_store` gives them in view 0."""
    folder, store = tmp_path_factory.mktemp("recorded"), TargetStore.open(exact_store)
    for scan, view in sorted(store.finished()):
        if view == 0:
            points = read_points(store_scans, scan)
            rows = logits_of_points(store.read(scan, 0, points)[0], points, store.identity.polar_grid)
            write(folder, scan, rows.numpy())
    (folder / "classes.yaml").write_text(LOGITS)
    return folder


@pytest.fixture(scope="module")
def recorded_store(tmp_path_factory, recorded, store_scans) -> Path:
    """A dump of them, exact."""
    cache = tmp_path_factory.mktemp("recorded_store") / "cache"
    words = dump_words(store_scans, recorded, cache, STREET_GRID, *VIEWS, "profile=full", *encoding_words("float32"))
    said = succeed(command(program, *words))
    assert "teacher  recorded a friend's" in said
    assert "layers: none, logits only" in said
    assert f"--cache {cache} --experiment logit" in said
    return cache


def test_recorded_logits_of_the_live_teacher_give_its_store(
    recorded_store, recorded, store_scans, exact_store, tmp_path
):
    live = read_all(TargetStore.open(exact_store), store_scans)
    found = read_all(TargetStore.open(recorded_store), store_scans)
    assert found.keys() == live.keys()
    for (scan, view), targets in found.items():
        assert targets.layers == targets.voxel_layers == {}
        assert torch.equal(targets.voxels, live[scan, view].voxels)
        if view == 0:
            np.testing.assert_allclose(targets.logits, live[scan, view].logits, atol=1e-5)
    points, rows = read_points(store_scans, SCAN), np.load(recorded / "00" / "000000.npy")
    view = TargetStore.open(recorded_store).read(SCAN, 1, points)[1]
    point_voxel = voxelise(apply_view(points, view), PolarGrid.named("polarnet", STREET_GRID)).point_voxel
    assert len(set(point_voxel.tolist())) < len(points)
    for voxel, logits in enumerate(found[SCAN, 1].logits.numpy()):
        np.testing.assert_allclose(logits, rows[point_voxel == voxel].mean(axis=0), atol=1e-5)

    succeed(dump(store_scans, recorded, tmp_path / "small", STREET_GRID, "splits=[train]", "encoding.logits=int8_row"))
    for item, targets in read_all(TargetStore.open(tmp_path / "small"), store_scans).items():
        step = live[item].logits.abs().amax(dim=1, keepdim=True) / 127
        error = (targets.logits - live[item].logits).abs() / step
        # What would share the code of a voxel's largest logit has one less.
        assert error.max() <= 1.51
        assert (error > 0.51).float().mean() < 0.01
        assert torch.equal(targets.logits.argmax(1), live[item].logits.argmax(1))


def test_a_student_learns_from_logits_alone_and_layers_are_refused(recorded_store, store_scans, runs):
    assert "2 steps" in succeed(train(store_scans, recorded_store, runs / "logit", "steps=2", name="logit"))
    refused = fail(train(store_scans, recorded_store, runs / "vpd", "steps=1", name="vpd"))
    assert (
        "layers: the experiment needs ['down1c', 'down3c', 'up4e', 'up2e'], the store has none, only logits" in refused
    )


def test_the_store_is_verified_evaluated_and_averaged_with_a_live_teacher(
    recorded_store, recorded, store_scans, reduced_teacher, exact_store, experiment, tmp_path
):
    folder = Path(shutil.copytree(recorded, tmp_path / "predictions"))
    on = ("--data", store_scans, "--device", "cpu")
    verify = ("verify", "--cache", recorded_store, "--teacher", folder, "--live", 8, *on)
    assert "All as the teacher says." in succeed(command(program, *verify))
    rows = np.load(folder / "00" / "000001.npy")
    write(folder, ScanId("00", "000001"), np.roll(rows, 1, axis=1))
    assert "WRONG" in fail(command(program, *verify))
    (folder / "classes.yaml").write_text(LOGITS.replace("friend's", "friend's, again"))
    names = "made by the teacher recorded a friend's [0-9a-f]{16}, this one is recorded a friend's, again [0-9a-f]{16}"
    assert re.search(names, fail(command(program, *verify)))
    shutil.copy(recorded / "classes.yaml", folder)

    evaluate = ("evaluate", "--teacher", folder, "--experiment", experiment, "--json", tmp_path / "out.json", *on)
    assert "mIoU" in succeed(command(program, *evaluate))
    finding = check_teacher(folder).finding
    assert "recorded a friend's" in finding
    assert finding.endswith("20 classes; channels of its layers: none")

    words = dump_words(
        store_scans,
        reduced_teacher,
        tmp_path / "both",
        STREET_GRID,
        "splits=[train]",
        "teacher_weights=[4, 1]",
        "layers=[up0e]",
    )
    assert "cost     2 answers" in succeed(command(program, *words, "--teacher", folder))
    both, item = read_all(TargetStore.open(tmp_path / "both"), store_scans), (ScanId("00", "000001"), 0)
    expected = read_all(TargetStore.open(exact_store), store_scans)[item].logits.softmax(dim=1)
    expected = 0.8 * expected + 0.2 * expected.roll(1, dims=1)
    np.testing.assert_allclose(both[item].logits.softmax(dim=1), expected, atol=1e-5)
    assert list(both[item].layers) == ["up0e"]


def test_a_student_asks_it_while_training(recorded, store_scans, exact_store, semantic_kitti):
    teacher = load_named_teacher("cylinder3d", recorded, CPU)
    settings = reduced_experiment(STREET_GRID, "targets=online", name="logit")
    source = open_targets(settings, semantic_kitti, [], None, teacher)
    dataset, scans = Dataset.open(store_scans, semantic_kitti), [SCAN, ScanId("00", "000001")]
    targets = source.online(student_data(settings, dataset, source).load_batch(scans, 0).batch)
    stored = read_all(TargetStore.open(exact_store), store_scans)
    np.testing.assert_allclose(targets.logits, torch.cat([stored[scan, 0].logits for scan in scans]), atol=1e-5)
    with pytest.raises(SettingsError, match="no layer 'down1c'; it has logits only"):
        open_targets(reduced_experiment(STREET_GRID, "targets=online"), semantic_kitti, [], None, teacher)
    nameless = batch_scans([voxelise(dataset.read(SCAN).points, settings.grid.grid())], STREET_GRID)
    with pytest.raises(DataError, match="these points are no scan of a dataset"):
        teacher.for_dataset(semantic_kitti).targets(nameless, ())


def test_bad_recordings_stop_the_dump_or_are_skipped(recorded, store_scans, tmp_path):
    folder, cache = Path(shutil.copytree(recorded, tmp_path / "predictions")), tmp_path / "cache"
    (folder / "00" / "000001.npy").unlink()
    (folder / "00" / "000002.npy").write_bytes(b"nothing")
    refused = fail(dump(store_scans, folder, cache, STREET_GRID, "splits=[train]"))
    assert "scan 00/000001: " in refused
    assert "00/000001.npy is missing (or the same with .npz). See docs/recorded-targets.md." in refused
    said = succeed(dump(store_scans, folder, cache, STREET_GRID, "splits=[train]", "on_bad_scan=skip"))
    assert "2 scan-views skipped" in said
    assert {scan.frame for scan, _ in TargetStore.open(cache).finished()} == {"000000"}
    assert "set it to 1" in fail(dump(store_scans, folder, tmp_path / "x", STREET_GRID, "views_averaged=2"))
    (folder / "classes.yaml").unlink()
    assert "classes.yaml is missing" in fail(dump(store_scans, folder, tmp_path / "x", STREET_GRID))


def rows_of(kind: str) -> np.ndarray:
    logits = np.random.default_rng(0).normal(0, 3, (POINTS, CLASSES)).astype(np.float32)
    return logits if kind == "logits" else torch.from_numpy(logits).softmax(dim=1).numpy()


def changed(kind: str, value: float) -> np.ndarray:
    rows = rows_of(kind)
    rows[3, 5] = value
    return rows


def opened(folder: Path, text: str, label_map: Any) -> Any:
    (folder / "classes.yaml").write_text(text)
    return load_named_teacher("cylinder3d", folder, CPU).for_dataset(label_map)


@pytest.mark.parametrize(
    ("description", "rows", "message"),
    [
        (LOGITS, rows_of("logits")[:-1], "has 5 rows, the scan has 6 points"),
        (LOGITS, rows_of("logits")[:, 1:], "has 19 columns, classes.yaml and the dataset make it 20"),
        (LOGITS, changed("logits", np.nan), "row 3 holds NaN or infinity"),
        (LOGITS, rows_of("logits").astype(np.float64) * 1e300, "holds NaN or infinity"),
        (LOGITS, rows_of("logits").argmax(axis=1), "holds int64 of shape (6,), not floats of [points, classes]"),
        (LOGITS, rows_of("logits").astype(object), "Python objects in dtype"),
        (LOGITS, rows_of("probabilities"), "every row is a distribution; set kind: probabilities in classes.yaml"),
        (PROBABILITIES, rows_of("logits"), "row 0 is no distribution: its smallest number is -"),
        (PROBABILITIES, changed("probabilities", 0.9), "row 3 is no distribution"),
        (PROBABILITIES, changed("probabilities", np.inf), "row 3 holds NaN or infinity"),
    ],
)
def test_rows_that_are_none_are_refused_by_name_of_the_scan(tmp_path, semantic_kitti, description, rows, message):
    teacher = opened(tmp_path, description, semantic_kitti)
    path = write(tmp_path, SCAN, rows)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        teacher.check_scan(SCAN, POINTS)
    assert error.value.message.startswith(f"scan {SCAN}: {path}: ")


def test_an_archive_holds_one_array(tmp_path, semantic_kitti):
    teacher = opened(tmp_path, PROBABILITIES, semantic_kitti)
    rows, path = rows_of("probabilities"), tmp_path / "00" / "000000.npz"
    path.parent.mkdir()
    np.savez_compressed(path, rows.astype(">f2"))
    np.testing.assert_allclose(np.exp(teacher.rows(SCAN, POINTS)), rows, atol=1e-3)
    np.savez(path, rows, rows)
    with pytest.raises(DataError, match="holds 2 arrays, one is expected"):
        teacher.rows(SCAN, POINTS)
    np.savez(path, rows)
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    for entry, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[whole.index(entry) + flags] |= 1
    for spoilt in (whole[:-40], encrypted):
        path.write_bytes(spoilt)
        with pytest.raises(DataError, match=f"scan {SCAN}: "):
            teacher.rows(SCAN, POINTS)


def test_columns_are_mapped_by_name(tmp_path, semantic_kitti):
    names = [*reversed(semantic_kitti.names[1:]), "car"]
    teacher = opened(tmp_path, f"{LOGITS}classes: {names}\n".replace("'", ""), semantic_kitti)
    assert isinstance(teacher, RecordedTeacher)
    assert teacher.columns[:3] == ((), (18, 19), (17,))
    rows = torch.from_numpy(rows_of("logits"))
    mapped, of_columns = in_classes(rows, teacher.columns).softmax(dim=1), rows.softmax(dim=1)
    np.testing.assert_allclose(mapped[:, 1], of_columns[:, 18:].sum(dim=1), atol=1e-6)
    np.testing.assert_allclose(mapped[:, 2:], of_columns[:, :18].flip(1), atol=1e-6)
    assert float(mapped[:, 0].max()) < 1e-7
    assert torch.equal(in_classes(rows, teacher.columns)[:, 2], rows[:, 17])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LOGITS}classes: [car, lorry]\n", "dataset 'semantic_kitti' has no lorry. No column stands for bicycle, "),
        ("kind: logits\n", "model: is missing"),
        (f"{LOGITS}names: [car]\n", "names: unknown key"),
        ("model: x\nkind: labels\n", "kind: must be 'logits' or 'probabilities'"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, semantic_kitti, text, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        opened(tmp_path, text, semantic_kitti)


def test_the_printed_example_writes_what_is_dumped(store_scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store_scans, "dataset")
    page = (REPOSITORY / "docs" / "recorded-targets.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {"my_model": lambda points: points[:, 2:3] * np.linspace(-1, 1, CLASSES)})
    said = succeed(dump(Path("dataset"), Path("predictions"), Path("cache"), STREET_GRID, "splits=[train]"))
    assert "teacher  recorded PTv3, trained in May" in said
    [mapping] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("predictions/classes.yaml").write_text(mapping)
    refused = fail(dump(Path("dataset"), Path("predictions"), Path("other"), STREET_GRID, "splits=[train]"))
    assert "has 20 columns, classes.yaml and the dataset make it 21" in refused
