"""Bad scans: what a dump, a training run, an evaluation and a prediction make of them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from tests.benchmarks.faults import reading
from tests.benchmarks.faults.verdicts import Kind, Verdict, each, judge, nothing_changed
from tests.benchmarks.faults.workshop import Case

SPOILT = ScanId("00", "000001")
TO_EVALUATE = ScanId("08", "000000")


def spoil_scan(case: Case, how: str, scan: ScanId = SPOILT) -> Path:
    """A copy of the dataset with one bad scan."""
    data = case.copy("data")
    points, labels = scan_path(data, scan), label_path(data, scan)
    cloud = np.fromfile(points, "<f4").reshape(-1, 4)
    row, column = int(case.generator.integers(len(cloud))), int(case.generator.integers(3))
    if how == "truncated":
        points.write_bytes(points.read_bytes()[: int(case.generator.integers(1, points.stat().st_size))])
    elif how == "empty":
        points.write_bytes(b"")
    elif how == "missing":
        points.unlink()
    elif how == "a folder":
        points.unlink()
        points.mkdir()
    elif how == "unreadable":
        points.unlink()
        points.symlink_to(points)
    elif how == "text":
        points.write_bytes(b"<!DOCTYPE html><html><head>404 not found</head>  " * 40)
    elif how == "labels cut off":
        labels.write_bytes(labels.read_bytes()[:-8])
    elif how == "labels of another scan":
        labels.write_bytes(labels.read_bytes() * 2)
    elif how == "labels unknown":
        np.full(len(cloud), 4711, "<u4").tofile(labels)
    elif how == "labels a folder":
        labels.unlink()
        labels.mkdir()
    else:
        SPOIL_POINTS[how](cloud, row, column)
        (cloud[:1] if how == "one point" else cloud).tofile(points)
    return data


def one_value(value: float) -> Callable[[np.ndarray, int, int], None]:
    """Set one number of one point."""

    def change(cloud: np.ndarray, row: int, column: int) -> None:
        cloud[row, column] = value

    return change


def all_values(column: int, factor: float) -> Callable[[np.ndarray, int, int], None]:
    """Multiply a column (-1: the coordinates)."""

    def change(cloud: np.ndarray, row: int, _: int) -> None:
        cloud[:, slice(3) if column < 0 else column] *= factor

    return change


SPOIL_POINTS: dict[str, Callable[[np.ndarray, int, int], None]] = {
    "NaN": one_value(np.nan),
    "infinity": one_value(-np.inf),
    "a coordinate of 1e9": one_value(1e9),
    "a coordinate of 1e38": one_value(3e38),
    "all coordinates by 1e9": all_values(-1, 1e9),
    "in millimetres": all_values(-1, 1e3),
    "reflectance by 1e6": all_values(3, 1e6),
    "reflectance by 1e30": all_values(3, 1e30),
    "one point": one_value(1.0),
    "all at the origin": all_values(-1, 0.0),
}
HOWS = (
    *("truncated", "empty", "missing", "a folder", "unreadable", "text"),
    *("labels cut off", "labels of another scan", "labels unknown", "labels a folder"),
    *SPOIL_POINTS,
)
WITHOUT_LABELS = tuple(how for how in HOWS if not how.startswith("labels"))
NAMES = ("00/000001", "00/velodyne/000001.bin", "00/labels/000001.label")


def dump(policy: str) -> Callable[[Case, str], Verdict]:
    """A dump, with `on_bad_scan` as it says. The other scans must come out bit for bit as without the bad one."""

    def attack(case: Case, how: str) -> Verdict:
        data, store = spoil_scan(case, how), case.folder / "store"
        words = case.workshop.dump_words(store, "exact", data, f"on_bad_scan={policy}")
        ended = case.command(*words)
        said = ended.output

        def others_intact() -> bool | None:
            expected = case.workshop.digests["exact"]
            given = case.prepared(lambda: reading.digests(store))
            wrong = [key for key in given if key.partition(".")[0] != str(SPOILT) and given[key] != expected[key]]
            whole = all(key in given for key in expected if key.partition(".")[0] != str(SPOILT))
            left_out = str(SPOILT) not in {key.partition(".")[0] for key in given}
            known = how == "missing" or any(name in said for name in NAMES)
            if wrong or not whole or (left_out and not known):
                return False
            return True if left_out or how == "missing" else check_verified(case, store)

        return judge(ended, f"{how} ({policy})", NAMES, others_intact, nothing_changed)

    return attack


def check_verified(case: Case, store: Path) -> bool | None:
    """None, usable, where a store with a strange scan passes its own check; False where it does not."""
    return None if case.command("verify", "--cache", store).status == 0 else False


def train(case: Case, how: str) -> Verdict:
    """Training from a store that was dumped before the scan went bad: labels and cloud are no longer those."""
    data, run = spoil_scan(case, how), case.folder / "run"
    words = case.workshop.train_words(run)
    words = [str(data) if word == str(case.workshop.path("data")) else word for word in words]
    ended = case.command(*words)
    return judge(ended, how, NAMES, lambda: how == "missing", nothing_changed)


def evaluate(case: Case, how: str) -> Verdict:
    """Evaluation on a bad scan; strange ones that are well formed get a number like any other."""
    data, run = spoil_scan(case, how, TO_EVALUATE), case.copy("straight", "run")
    ended = case.command("evaluate", "--data", data, "--run", run, "--device", "cpu")
    names = ("08/000000", "08/velodyne", "08/labels", "sequence 08", "val")
    return judge(ended, how, names, lambda: None, nothing_changed)


def predict(case: Case, how: str) -> Verdict:
    """Prediction of a bad scan: as many labels as points."""
    data, run, out = spoil_scan(case, how, TO_EVALUATE), case.copy("straight", "run"), case.folder / "out"
    words = ["predict", "--data", data, "--run", run, "--device", "cpu", "--out", out, "--split", "08"]
    ended = case.command(*words)

    def sizes_fit() -> bool | None:
        written = next(out.rglob("000000.label"), None)
        size = os.stat(scan_path(data, TO_EVALUATE)).st_size // 4
        return None if written is not None and written.stat().st_size == size else False

    return judge(ended, how, ("08/000000", "08/velodyne", "sequence 08"), sizes_fit, nothing_changed)


KINDS: tuple[Kind, ...] = (
    each("bad scan: dump stops", HOWS, dump("stop")),
    each("bad scan: dump skips", HOWS, dump("skip")),
    each("bad scan: train", HOWS, train),
    each("bad scan: evaluate", HOWS, evaluate),
    each("bad scan: predict", WITHOUT_LABELS, predict),
)
