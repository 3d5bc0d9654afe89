"""A store of somebody who means harm: refused with an error that names the file; never a crash, nor boundless work."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.archive import ArchiveStorage
from stage1_dump_teacher.__main__ import main
from tests.shared.reduced import command, fail, succeed
from tests.targets.store.forged_stores import NAME, PLAIN, SCAN, refused, store_with
from tests.targets.store.forgery import members_of, with_identity, with_numbers, zip_of
from tests.targets.store.made_up_targets import store_files


def stage_one(*words: Any):
    """Run a command of stage one in this process."""
    return command(main, *words)


# Paths


@pytest.mark.parametrize(
    "member",
    [
        "sequences/../../victim/sequences/00/000000.v0.zarr.zip",
        "sequences/x//../../../../victim.v0.zarr.zip",
        "sequences/00/../000000.v0.zarr.zip",
        "sequences/00/..\\000000.v0.zarr.zip",
        "sequences/00/\x1b[2J.v0.zarr.zip",
        "sequences/000000.v0.zarr.zip",
        "sequences/00/000000.v².zarr.zip",
        "sequences/00/000000.v01.zarr.zip",
        "sequences/00/000000.v.zarr.zip",
    ],
)
def test_an_archive_with_a_name_that_no_store_writes_is_refused(tmp_path, member):
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of({"manifest.json": store_files()["manifest.json"], member: store_files()[NAME]}))
    for words in (("merge", "--from", archive), ("convert", "--cache", archive, "--set", "encoding.codec=lz4")):
        message = fail(stage_one(*words, "--to", tmp_path / "out" / "store"))
        assert "which a store never writes" in message
        assert "\x1b" not in message
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) in (
        ["forged.zip"],
        ["forged.zip", "manifest.json"],
    )
    for words in (("verify",), ("info",)):
        assert "which a store never writes" in fail(stage_one(*words, "--cache", archive))


def test_hidden_files_of_other_systems_are_no_scan_files(tmp_path):
    files = store_files() | {f"sequences/00/._{Path(NAME).name}": b"resource fork"}
    assert store_with(files).finished() == store_with(dict(store_files())).finished()


# Manifests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it["views"].update(count=1_000_000), "views.count"),
        (lambda it: it["views"].update(anchors={"flips": ["none"], "rotations": 10**6}), "anchors"),
        (lambda it: it["grid"].update(shape=[10**12, 10**12, 10**12]), "grid"),
        (lambda it: it["grid"].update(shape=[0, 12, 8]), "grid"),
        (lambda it: it["grid"].update(minimum=[1e400, 0.0, 0.0]), "not a manifest|grid"),
        (lambda it: it.update(layers={f"layer{row}": 4 for row in range(100_000)}), "layers"),
        (lambda it: it.update(layers={"../../x": 4}), "layers"),
        (lambda it: it.update(layers={"down1c": -4}), "layers"),
        (lambda it: it.update(layers={"down1c": 10**12}), "layers"),
        (lambda it: it.update(teacher_hash="a" * 1_000_000), "teacher_hash"),
    ],
)
def test_a_manifest_that_asks_for_boundless_work_is_refused(change, words):
    manifest = with_identity(store_files()["manifest.json"], change)
    with pytest.raises(StoreError, match=words) as caught:
        store_with({"manifest.json": manifest})
    assert "manifest.json" in caught.value.message
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500])
def test_json_that_nests_deeply_is_refused(nested):
    with pytest.raises(StoreError, match=r"manifest\.json: not a manifest of a target store \(nests"):
        store_with({"manifest.json": nested})
    files = members_of(PLAIN[NAME])
    assert "zarr.json is not the metadata" in refused(zip_of(files | {"zarr.json": nested}))


def test_json_beyond_all_measure_is_not_parsed():
    manifest = store_files()["manifest.json"] + b" " * 5_000_000
    with pytest.raises(StoreError, match=r"bytes of JSON; at most"):
        store_with({"manifest.json": manifest})


@pytest.mark.parametrize(("version", "words"), [(3, "Update the program"), (1, "Dump again")])
def test_another_format_says_which_side_is_old(version, words):
    manifest = with_identity(store_files()["manifest.json"], lambda it: it.update(format_version=version))
    with pytest.raises(StoreError, match=rf"format version {version}, this program reads 2\. {words}"):
        store_with({"manifest.json": manifest})


def test_info_prints_no_control_characters_of_a_store(tmp_path):
    values = json.loads(store_files()["manifest.json"])
    values["made"] = "today\x1b]0;owned\x07"
    values["provenance"] = {
        "project": "1\x1b[2J",
        "packages": {"a\x1b[31m": "2\u202e"},
        "merged_from": [{"location": "x\nnothing wrong", "made": "\x9b1m"}],
    }
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of(store_files() | {"manifest.json": json.dumps(values).encode()}))
    output = succeed(stage_one("info", "--cache", archive))
    assert "owned" in output
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "\nnothing wrong" not in output
    json.loads(succeed(stage_one("info", "--cache", archive, "--json")))


@pytest.mark.parametrize("provenance", [{"packages": 3}, {"merged_from": {"a": 1}}, {"git_commit": 5}])
def test_info_names_a_provenance_that_is_none(tmp_path, provenance):
    values = json.loads(store_files()["manifest.json"]) | {"provenance": provenance}
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of(store_files() | {"manifest.json": json.dumps(values).encode()}))
    assert f"provenance.{next(iter(provenance))}" in fail(stage_one("info", "--cache", archive))


def test_an_archive_whose_directory_lies_about_sizes_is_refused_without_taking_memory(tmp_path):
    archive = tmp_path / "forged.zip"
    data = bytearray(zip_of(dict(store_files())))
    entry = int.from_bytes(data[-6:-2], "little")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFFE, 0xFFFFFFFE)
    archive.write_bytes(data)
    with pytest.raises(StoreError, match="beyond the end"):
        ArchiveStorage(archive).read(next(iter(store_files())))


def test_show_targets_refuses_numbers_that_no_teacher_said(tmp_path):
    archive = tmp_path / "forged.zip"
    forged = with_numbers(PLAIN[NAME], "logits", lambda numbers: numbers * np.float32("nan"))
    archive.write_bytes(zip_of(PLAIN | {NAME: forged}))
    out = tmp_path / "targets.npz"
    words = ("show-targets", "--cache", archive, "--scan", str(SCAN), "--out", out)
    assert "logits holds NaN or infinity" in fail(stage_one(*words))
    assert not out.exists()


def test_info_says_that_files_are_of_another_store(tmp_path):
    archive = tmp_path / "mixed.zip"
    archive.write_bytes(zip_of(PLAIN | {"manifest.json": store_files("float16", "none")["manifest.json"]}))
    said = f"None of {len(PLAIN) - 1} sampled scan files could be read as one of this store: run verify"
    assert said in succeed(stage_one("info", "--cache", archive))


def test_a_member_without_a_name_is_passed_over(tmp_path):
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of({**store_files(), "x": b"", "": b""}))
    assert TargetStore.open(archive).finished() == store_with(dict(store_files())).finished()
