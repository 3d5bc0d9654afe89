"""What a student is shown: views, the order of scans, and whose labels are used."""

import shutil
from pathlib import Path

from common.scans.dataset import Dataset, epoch_order
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.scans.view import View, ViewPolicy, draw_view
from common.targets.store import TargetStore
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentData, choose_view
from stage2_train_student.training.experiment import TargetSource, student_data
from stage2_train_student.training.scans import choose_scans
from tests.shared.reduced import STREET_GRID, fail, reduced_experiment, train


def data_of(settings: ExperimentSettings, root: Path, store: TargetStore | None = None) -> StudentData:
    return student_data(settings, Dataset.open(root, load_label_map(settings.dataset)), TargetSource(store=store))


def test_each_epoch_replays_the_stored_views(streets, street_cache, semantic_kitti):
    settings = reduced_experiment(STREET_GRID)
    data = data_of(settings, streets, TargetStore.open(street_cache))
    scan = ScanId("00", "000001")
    seen = {choose_view(2, settings.seed, scan, epoch) for epoch in range(8)}
    assert seen == {0, 1}
    clouds = {data.load(scan, epoch)[0].point_features.tobytes() for epoch in range(8)}
    assert len(clouds) == 2


def test_fresh_views_are_drawn_by_the_seed_of_the_run_and_those_of_a_set_are_not(streets):
    """The spread over seeds has to include what is drawn at random; a set of views is the same as in a store."""
    scans = [ScanId("00", f"{frame:06d}") for frame in range(5)]

    def views(*overrides: str) -> list[View]:
        data = data_of(reduced_experiment(STREET_GRID, *overrides, name="baseline"), streets)
        return [data.drawn_view(scan, epoch) for scan in scans for epoch in range(4)]

    fresh = [views("augmentation.count=null", f"seed={seed}") for seed in range(3)]
    rotations = {view.rotation for drawn in fresh for view in drawn}
    assert len(rotations) == 3 * len(fresh[0])
    assert fresh[1] == views("augmentation.count=null", "seed=1")
    # Such is the policy's own seed, and that of runs begun when the seed of a run did not count.
    assert fresh[0] == [draw_view(ViewPolicy(), scan, 1 + epoch) for scan in scans for epoch in range(4)]
    for seed in range(3):
        chosen = views("augmentation.count=3", f"seed={seed}")
        of_set = [[draw_view(ViewPolicy(), scan, index) for index in range(3)] for scan in scans for _ in range(4)]
        assert all(view in known for view, known in zip(chosen, of_set, strict=True))


def test_an_epoch_visits_every_scan_once_in_an_order_of_its_own():
    scans = [ScanId("00", f"{frame:06d}") for frame in range(11)]
    epochs = [epoch_order(scans, 3, 0, epoch) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [3, 3, 3, 2]
        assert sorted(scan for batch in batches for scan in batch) == scans
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(scans, 3, 0, 0)
    assert epochs[0] != epoch_order(scans, 3, 1, 0)


def test_scans_of_other_sequences_join_the_distillation_without_their_labels(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00', '08']", "labels=['00']")
    data = data_of(settings, streets)
    assert data.load(ScanId("00", "000000"), 0)[0].voxel_labels.any()
    assert not data.load(ScanId("08", "000000"), 0)[0].voxel_labels.any()


def test_labels_must_be_those_of_training_scans(streets, street_cache, runs):
    message = fail(train(streets, street_cache, runs / "a", "labels=['08']"))
    assert "none of the training scans (train) is in 08" in message


def test_without_a_teacher_scans_without_labels_are_refused(streets, runs):
    message = fail(train(streets, None, runs / "a", "labels=['00']", name="baseline"))
    assert "a scan without labels teaches nothing" in message


def test_labels_of_every_so_many_th_scan_only(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00']", "label_every=2")
    data, scans = data_of(settings, streets), [ScanId("00", f"{frame:06d}") for frame in range(3)]
    assert [bool(data.load(scan, 0)[0].voxel_labels.any()) for scan in scans] == [True, False, True]
    named = data_of(reduced_experiment(STREET_GRID, "train=['00']", "label_every=2", "labels=['00']"), streets)
    assert named.labelled == data.labelled


def test_a_choice_of_labels_that_finds_none_is_refused(tmp_path, street_cache, streets, runs):
    data = tmp_path / "dataset"
    shutil.copytree(streets, data)
    for frame in (0, 3):
        (data / f"sequences/00/labels/{frame:06d}.label").unlink()
    message = fail(train(data, street_cache, runs / "a", "train=['00']", "label_every=3"))
    assert "none of the 2 scans of 00 (one in 3) has a label file" in message


def test_without_a_teacher_only_scans_whose_labels_are_used_are_trained_on(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00', '08']", "label_every=2", name="baseline")
    chosen = choose_scans(settings, Dataset.open(streets, load_label_map(settings.dataset))).train
    assert [str(scan) for scan in chosen] == ["00/000000", "00/000002", "00/000004", "08/000000"]
