"""Raw label ids to training classes and back."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.base.errors import DataError, SettingsError
from common.scans.label_map import load_label_map


def test_all_official_ids_are_mapped(semantic_kitti):
    assert len(semantic_kitti.classes) == 20
    assert len(semantic_kitti.learning_map) == 34
    moving = {252: "car", 253: "bicyclist", 254: "person", 255: "motorcyclist", 256: "other-vehicle", 258: "truck"}
    for raw, name in moving.items():
        assert semantic_kitti.names[semantic_kitti.learning_map[raw]] == name
    assert semantic_kitti.to_training(np.array([0, 1, 52, 99], np.uint32)).tolist() == [0, 0, 0, 0]


@given(labels=hnp.arrays(np.uint8, st.integers(0, 50), elements=st.integers(0, 19)))
def test_training_classes_survive_a_round_trip(semantic_kitti, labels):
    raw = semantic_kitti.to_raw(labels)
    assert raw.dtype == np.uint32
    back = semantic_kitti.to_training(raw)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, labels)


@given(instances=hnp.arrays(np.uint32, 34, elements=st.integers(0, 0xFFFF)))
def test_instance_in_the_high_bits_does_not_matter(semantic_kitti, instances):
    raw = np.array(list(semantic_kitti.learning_map), np.uint32)
    np.testing.assert_array_equal(semantic_kitti.to_training(raw | instances << 16), semantic_kitti.to_training(raw))


@given(unknown=st.integers(0, 0xFFFF))
def test_any_unknown_id_is_refused(semantic_kitti, unknown):
    if unknown in semantic_kitti.learning_map:
        return
    with pytest.raises(DataError, match=rf"\[{unknown}\]"):
        semantic_kitti.to_training(np.array([40, unknown], np.uint32))


def test_unknown_ids_are_all_named_with_their_file(semantic_kitti):
    raw = np.array([40, 7, 10 | 5 << 16, 300 | 9 << 16, 7], np.uint32)
    with pytest.raises(DataError) as caught:
        semantic_kitti.to_training(raw, "sequences/00/labels/000003.label")
    assert "sequences/00/labels/000003.label" in caught.value.message
    assert "[7, 300]" in caught.value.message


def test_class_weights_follow_from_the_class_shares(semantic_kitti):
    shares = semantic_kitti.class_shares()
    assert shares.shape == (20,)
    assert shares.sum() == pytest.approx(sum(semantic_kitti.content.values()))
    car = semantic_kitti.content[10] + semantic_kitti.content[252]
    assert shares[1] == pytest.approx(car)
    weights = semantic_kitti.class_weights()
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, 1 / (shares + 0.001), rtol=1e-6)


def test_splits_and_sequence_numbers(semantic_kitti):
    assert semantic_kitti.sequences(["val"]) == ["08"]
    assert semantic_kitti.sequences(["8", "val", "00"]) == ["08", "00"]
    assert len(semantic_kitti.sequences(["train", "val", "test"])) == 22
    assert semantic_kitti.sequences(["drive", "val"]) == ["drive", "08"]
    assert [semantic_kitti.split_of(name, ["test"]) for name in ("08", "21", "drive")] == ["val", "test", None]


def own_dataset(**changes) -> dict:
    values = {
        "name": "own",
        "classes": [
            {"name": "unlabelled", "raw_id": 0, "colour": [0, 0, 0]},
            {"name": "road", "raw_id": 5, "colour": [1, 2, 3]},
        ],
        "learning_map": {0: 0, 5: 1, 6: 1},
        "content": {0: 0.5, 5: 0.25, 6: 0.25},
        "splits": {"train": ["0", "1"]},
    }
    return values | changes


def test_own_dataset(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own_dataset()))
    label_map = load_label_map(path)
    assert label_map.to_training(np.array([6, 5, 0], np.uint32)).tolist() == [1, 1, 0]
    assert label_map.splits == {"train": ["00", "01"]}


def test_sequences_may_have_names(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump(own_dataset(splits={"train": ["north", "south", "a"], "busy": ["south"]}), sort_keys=False)
    )
    label_map = load_label_map(path)
    assert label_map.sequences(["busy", "train", "west", "7"]) == ["south", "north", "a", "west", "07"]
    assert label_map.split_of("south", ["busy"]) == "busy"
    assert label_map.split_of("south", ["west"]) == "train"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_map": {0: 0, 5: 2}}, "class 2"),
        ({"learning_map": {0: 0, 5: 1, 70000: 1}}, "70000"),
        ({"learning_map": {0: 0, 5: 0}}, "'road'"),
        ({"content": {0: 0.5, 5: 0.25}}, r"\[6\]"),
        ({"classes": []}, "classes"),
        ({"learning_map": {0: 0, 5: "road"}}, "learning_map"),
    ],
)
def test_dataset_that_contradicts_itself_is_refused(tmp_path, changes, named):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own_dataset(**changes)))
    with pytest.raises(SettingsError, match=named) as caught:
        load_label_map(path)
    assert str(path) in caught.value.message
