"""convert, merge and show-targets, used as a user would."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.base import files
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.members import read_members
from common.targets.store.zarr_zip import zip_of_group
from tests.shared.reduced import fail, succeed
from tests.shared.small_stores import (
    EXACT,
    FIRST,
    SECOND,
    TRAIN,
    dump_words,
    flip_byte_of,
    half_written,
    scan_files,
    stage_one,
)


@pytest.fixture
def store(tmp_path, train_store) -> Path:
    """A copy of `train_store` to break."""
    return Path(shutil.copytree(train_store, tmp_path / "cache"))


def test_convert_equals_a_dump_in_the_smaller_encoding(
    tmp_path, exact_store, train_store, store_scans, reduced_teacher
):
    words = ("convert", "--cache", exact_store, "--to", tmp_path / "train", "--profile", "train")
    assert "8 scan-views converted" in succeed(stage_one(*words))
    assert scan_files(tmp_path / "train") == scan_files(train_store)
    manifest = json.loads((tmp_path / "train/manifest.json").read_text())
    assert manifest["identity_hash"] == TargetStore.open(train_store).identity.hash
    assert manifest["provenance"]["converted_from"]["location"] == str(exact_store)

    (tmp_path / "train" / FIRST).unlink()
    untouched = (tmp_path / "train" / SECOND).stat().st_mtime_ns
    assert "1 scan-view converted, 7 were there before" in succeed(stage_one(*words))
    assert (tmp_path / "train" / SECOND).stat().st_mtime_ns == untouched
    assert scan_files(tmp_path / "train") == scan_files(train_store)
    # A dump can go on in it.
    shutil.rmtree(tmp_path / "train/sequences/08")
    assert "2 scan-views written" in succeed(
        stage_one(*dump_words(store_scans, reduced_teacher, tmp_path / "train", *TRAIN))
    )
    assert scan_files(tmp_path / "train") == scan_files(train_store)


def test_convert_copies_what_it_need_not_encode(tmp_path, train_store):
    options = ("--layers", "up2e,up0e", "--set", "encoding.codec=none")
    succeed(stage_one("convert", "--cache", train_store, "--to", tmp_path / "small", *options))
    small = TargetStore.open(tmp_path / "small")
    assert list(small.identity.layers) == ["up2e", "up0e"]
    assert "nothing wrong" in succeed(stage_one("verify", "--cache", tmp_path / "small"))
    for name, data in scan_files(tmp_path / "small").items():
        before, after = read_members((train_store / name).read_bytes()), read_members(data)
        assert {array for array in before.metadata if array in after.metadata} == set(after.metadata)
        assert not any(array.startswith(("down", "up4e")) for array in after.metadata)
        for array in after.metadata:
            np.testing.assert_array_equal(after.array(array), before.array(array))


def test_convert_never_gains_precision(tmp_path, train_store):
    words = ("convert", "--cache", train_store, "--to", tmp_path / "wide")
    message = fail(stage_one(*words, *(word for text in EXACT for word in ("--set", text))))
    assert "pillar_features: stored as int8_channel; float32 cannot restore" in message
    assert "logits: stored as int8_row; float32" in message
    assert "logits: stored as int8_row; int8_channel" in fail(
        stage_one(*words, "--set", "encoding.logits=int8_channel")
    )
    assert "voxel_features: the store keeps none" in fail(stage_one(*words, "--set", "voxel_features=true"))
    assert "layer up9e: the store has down1c" in fail(stage_one(*words, "--layers", "up9e"))
    assert "keep at least one" in fail(stage_one(*words, "--layers", ""))
    assert "did you mean 'encoding'?" in fail(stage_one(*words, "--set", "encodings.logits=int8_row"))
    assert "same store" in fail(stage_one("convert", "--cache", train_store, "--to", train_store))
    assert not (tmp_path / "wide").exists()


def test_convert_leaves_damaged_scans_out_and_says_so(tmp_path, store):
    flip_byte_of(store / FIRST, "up0e.pillar_features")
    words = ("convert", "--cache", store, "--to", tmp_path / "lz4", "--set", "encoding.codec=lz4")
    message = fail(stage_one(*words))
    assert "7 scan-views converted" in message
    assert "left out scan 00/000000, view 0: up0e.pillar_features does not match its checksum" in message
    assert FIRST not in scan_files(tmp_path / "lz4")


def test_convert_ends_when_the_disk_is_full(tmp_path, train_store, monkeypatch):
    flush = files.flush_to_disk

    def flush_until_full(path: Path) -> None:
        if path.name.startswith("000001.v1"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    words = ("convert", "--cache", train_store, "--to", tmp_path / "lz4", "--set", "encoding.codec=lz4", "--threads", 1)
    with monkeypatch.context() as patched:
        patched.setattr(files, "flush_to_disk", flush_until_full)
        assert "No space left on device" in fail(stage_one(*words))
    assert 3 <= len(scan_files(tmp_path / "lz4")) < 8
    assert not half_written(tmp_path / "lz4")
    assert "were there before" in succeed(stage_one(*words))
    assert len(scan_files(tmp_path / "lz4")) == 8


def split_store(store: Path, folder: Path) -> tuple[Path, Path]:
    """Two stores that hold a store's scan files in turns, the first one in both."""
    parts = folder / "one", folder / "two"
    for row, part in enumerate(parts):
        shutil.copytree(store, part)
        for name in sorted(scan_files(part))[1:]:
            if (name > SECOND) == bool(row):
                (part / name).unlink()
    return parts


def test_merge_makes_one_store_of_several(tmp_path, train_store):
    one, two = split_store(train_store, tmp_path)
    assert 0 < len(scan_files(one)) < 8
    # One whole copy is enough.
    flip_byte_of(one / FIRST, "logits")
    words = ("merge", "--from", one, "--from", two, "--to", tmp_path / "all")
    assert "8 scan-views copied" in succeed(stage_one(*words))
    assert scan_files(tmp_path / "all") == scan_files(train_store)
    assert "merged from" in succeed(stage_one("info", "--cache", tmp_path / "all"))

    (tmp_path / "all" / SECOND).unlink()
    assert "1 scan-view copied" in succeed(stage_one(*words))
    assert scan_files(tmp_path / "all") == scan_files(train_store)


def test_merge_into_a_readable_archive(tmp_path, train_store):
    one, two = split_store(train_store, tmp_path)
    words = ("merge", "--from", one, "--from", two)
    assert "8 scan-views copied" in succeed(stage_one(*words, "--archive", tmp_path / "all.zip"))
    assert "8 of 8 scan-views checked: nothing wrong" in succeed(stage_one("verify", "--cache", tmp_path / "all.zip"))
    assert "merged from" in succeed(stage_one("info", "--cache", tmp_path / "all.zip"))
    assert "end in .zip" in fail(stage_one(*words, "--archive", tmp_path / "all"))
    assert "either --to or --archive" in fail(stage_one(*words))


def test_merge_refuses_what_contradicts(tmp_path, train_store, exact_store):
    one, two = split_store(train_store, tmp_path)
    message = fail(stage_one("merge", "--from", one, "--from", exact_store, "--to", tmp_path / "all"))
    assert f"voxel_features: {one} has False, {exact_store} has True" in message
    assert "encoding.logits" in message

    identity = TargetStore.open(two).identity
    members = read_members((two / FIRST).read_bytes())
    arrays = {name: members.array(name) for name in members.metadata}
    arrays["logits"] = -arrays["logits"]
    (two / FIRST).write_bytes(zip_of_group(arrays, members.attributes, identity.encoding))
    message = fail(stage_one("merge", "--from", one, "--from", two, "--to", tmp_path / "all"))
    assert "scan 00/000000, view 0" in message
    assert f"differs between {one} and {two}" in message


def test_show_targets_holds_the_targets(tmp_path, exact_store, store_scans):
    out = tmp_path / "targets.npz"
    output = succeed(
        stage_one("show-targets", "--cache", exact_store, "--scan", "00/000001", "--view", 1, "--out", out)
    )
    store = TargetStore.open(exact_store)
    targets, view = store.read(ScanId("00", "000001"), 1, None, voxel_features=True)
    with np.load(out, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["voxels"], targets.voxels[:, 1:])
        np.testing.assert_array_equal(arrays["logits"], targets.logits)
        for name, layer in targets.layers.items():
            np.testing.assert_array_equal(arrays[f"{name}.pillars"], layer.pillars[:, 1:])
            np.testing.assert_array_equal(arrays[f"{name}.pillar_features"], layer.features)
            np.testing.assert_array_equal(arrays[f"{name}.voxels"], targets.voxel_layers[name].voxels[:, 1:])
            np.testing.assert_array_equal(arrays[f"{name}.voxel_features"], targets.voxel_layers[name].features)
        parameters = json.loads(str(arrays["view"]))
        assert parameters.pop("index") == 1
        assert parameters == view.model_dump(mode="json")
        assert json.loads(str(arrays["grid"]))["shape"] == [48, 40, 16]
        assert set(arrays.files) > {"scan", "classes", "teacher_hash"}
    assert re.search(rf"logits +float32 +{len(targets.logits)}x20", output)
    words = ("show-targets", "--cache", exact_store, "--scan", "00/000009")
    assert "no targets of scan 00/000009, view 0" in fail(stage_one(*words, "--out", out))
    assert "has to end in .npz" in fail(stage_one(*words, "--out", tmp_path / "targets.txt"))
