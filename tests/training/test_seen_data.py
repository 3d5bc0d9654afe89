"""What a run notes of its scans and views: read back, held against the scans of now, and refused where damaged."""

import json

import pytest

from common.base.errors import CheckpointError, DataError
from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from common.targets.store import ViewSet
from stage2_train_student.training.seen_data import SEEN_FILE, ScansOfNow, read_seen, write_seen
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import STREET_GRID, reduced_experiment

VIEWS = ViewSet(count=4)
BASELINE = reduced_experiment(STREET_GRID, "train=[00]", name="baseline")
FULL = reduced_experiment(STREET_GRID, "train=[00]")


SCANS = [ScanId("00", f"{frame:06d}") for frame in range(3)]


def test_a_finished_run_is_held_against_the_scans_of_now(tmp_path):
    data = tmp_path / "dataset"
    scans = write_dataset(data, {"00": 3}, points=100)
    for name, settings in (("baseline", BASELINE), ("full", FULL)):
        (tmp_path / name).mkdir()
        ScansOfNow(data).check(tmp_path / name, settings)  # An older version noted nothing.
        write_seen(tmp_path / name, settings, VIEWS, scans, None)
    now = ScansOfNow(data)
    now.check(tmp_path / "baseline", BASELINE)
    now.check(tmp_path / "full", FULL)

    label_path(data, scans[1]).unlink()
    ScansOfNow(data).check(tmp_path / "full", FULL)
    with pytest.raises(CheckpointError, match=r"baseline: trained on 3 scans \(.*has others now\. Use the --data"):
        ScansOfNow(data).check(tmp_path / "baseline", BASELINE)
    scan_path(data, scans[2]).unlink()
    with pytest.raises(CheckpointError, match="full: trained on 3 scans"):
        ScansOfNow(data).check(tmp_path / "full", FULL)


def test_runs_of_one_choice_with_other_labels_saw_other_scans(tmp_path):
    data = tmp_path / "dataset"
    scans = write_dataset(data, {"00": 3}, points=100)
    few = BASELINE.model_copy(update={"label_every": 2})
    for name, settings, chosen in (("all", BASELINE, scans), ("few", few, scans[::2])):
        (tmp_path / name).mkdir()
        write_seen(tmp_path / name, settings, VIEWS, chosen, None)
    now = ScansOfNow(data)
    now.check(tmp_path / "all", BASELINE)
    now.check(tmp_path / "few", few)


def test_a_note_of_an_older_version_is_read(tmp_path):
    write_seen(tmp_path, FULL, VIEWS, SCANS, "ab")
    path, seen = tmp_path / SEEN_FILE, read_seen(tmp_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: values[name] for name in values if name not in ("crc32", "left_out")}))
    assert read_seen(tmp_path) == seen


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"scans": 3', '"scans": 4'),
        lambda text: text.replace('"count": 4', '"count": 2'),
        lambda _: "[" * 100_000,
        lambda _: "[]",
        lambda _: "",
    ],
)
def test_a_damaged_note_is_named(tmp_path, spoil):
    write_seen(tmp_path, FULL, VIEWS, SCANS, None)
    path = tmp_path / SEEN_FILE
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=f"{SEEN_FILE}: not what a training run writes there"):
        read_seen(tmp_path)
