"""info, verify and repair, used as a user would; and what all commands on stores have in common."""

import json
import os
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.scans.formats.semantic_kitti import scan_path
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.contents import SAMPLE_FILES, contents
from common.targets.store.members import read_members
from common.targets.store.zarr_zip import zip_of_group
from stage1_dump_teacher.__main__ import main
from tests.commands.test_makefile import command_line, make
from tests.shared.dataset_writer import write_dataset
from tests.shared.kitti import read_points
from tests.shared.memory_storage import MemoryStorage
from tests.shared.reduced import command_named, fail, finish, start, succeed
from tests.shared.small_stores import (
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


def words_after_dump(command: str, *arguments) -> list[str]:
    """The words of a dump for another command with the same options."""
    return [command, *dump_words(*arguments)[1:]]


def test_info_says_what_is_inside(train_store, store_scans):
    output = succeed(stage_one("info", "--cache", train_store))
    store = TargetStore.open(train_store)
    for text in (store.identity.teacher_hash, "48 x 40 x 16 bins", "rho 3.00..50.00", "up4e (128)", "int8_channel"):
        assert text in output
    assert "views      2 of each scan; rotate True" in output
    assert re.search(r"^  00 +3 +6 +\d", output, re.MULTILINE)
    assert re.search(r"^  all +4 +8 +\d", output, re.MULTILINE)
    assert "Mean sizes in 8 sampled scan files" in output
    assert re.search(r"^  up0e.pillar_features +int8_channel +[\d.]+ kB +[\d.]+ x +[\d.]+ x$", output, re.MULTILINE)
    assert "half-written" not in output


def test_info_for_programs(exact_store):
    report = json.loads(succeed(stage_one("info", "--cache", exact_store, "--json")))
    files = scan_files(exact_store)
    assert report["scan_views"] == len(files) == 8
    assert report["bytes"] == sum(map(len, files.values()))
    assert report["sequences"]["08"] == {"scans": 1, "scan_views": 2, "size": report["sequences"]["08"]["size"]}
    stored = [sum(read_members(data).stored_bytes().values()) for data in files.values()]
    assert sum(size["stored"] for size in report["arrays"].values()) == pytest.approx(np.mean(stored))
    for name, size in report["arrays"].items():
        assert size["uncompressed"] == size["plain"], name
    assert report["provenance"]["packages"]["zarr"]


def test_info_counts_what_a_dataset_still_lacks(store, store_scans, semantic_kitti_yaml):
    words = ("info", "--cache", store, "--data", store_scans, "--set", f"dataset={semantic_kitti_yaml}")
    assert "8 scan-views of the dataset, none is missing" in succeed(stage_one(*words))
    (store / FIRST).unlink()
    shutil.rmtree(store / "sequences/08")
    output = succeed(stage_one(*words))
    assert "62.5 %: 3 of 8 scan-views of the dataset are missing" in output
    assert "  00: 1 missing: 00/000000 view 0\n" in output
    assert "  08: 2 missing: 08/000000 view 0, 08/000000 view 1\n" in output
    report = json.loads(succeed(stage_one(*words, "--json")))
    assert report["missing"] == 3
    assert report["missing_scan_views"]["00"] == ["00/000000 view 0"]


def test_info_of_semantic_kitti_reads_a_sample_only(train_store, monkeypatch):
    small = TargetStore.open(train_store)
    storage = MemoryStorage()
    large = TargetStore.create_or_resume(storage, small.identity, {"packages": {}})
    data = (train_store / FIRST).read_bytes()
    for number in range(23_201):
        storage.write(large.name(ScanId(f"{number % 11:02d}", f"{number // 11:06d}"), 0), data)
    reads = []
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda name: reads.append(name) or read(name))
    tracemalloc.start()
    found = contents(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.total.scans == 23_201
    assert found.total.size == 23_201 * len(data)
    assert len(reads) == 1 + SAMPLE_FILES
    assert peak < 100e6


def test_empty_and_absent_stores(tmp_path, train_store):
    (tmp_path / "cache").mkdir()
    shutil.copy(train_store / "manifest.json", tmp_path / "cache")
    assert "The store is empty so far." in succeed(stage_one("info", "--cache", tmp_path / "cache"))
    assert "0 of 0 scan-views checked: nothing wrong" in succeed(stage_one("verify", "--cache", tmp_path / "cache"))
    for command in ("info", "verify"):
        assert "no target store here" in fail(stage_one(command, "--cache", tmp_path / "elsewhere"))


def test_verify_names_scan_view_and_array(store, store_scans):
    words = ("verify", "--cache", store, "--data", store_scans)
    assert "8 of 8 scan-views checked: nothing wrong" in succeed(stage_one(*words))
    flip_byte_of(store / FIRST, "up0e.pillar_features")
    flip_byte_of(store / SECOND, "logits.row_scale")
    cut = store / "sequences/00/000001.v0.zarr.zip"
    cut.write_bytes(cut.read_bytes()[:-100])
    shutil.copy(store / "sequences/08/000000.v1.zarr.zip", store / "sequences/00/000002.v1.zarr.zip")
    shutil.copy(store / "sequences/08/000000.v1.zarr.zip", store / "sequences/08/000000.v2.zarr.zip")
    (store / "sequences/08/000000.v0.zarr.zip").unlink()
    message = fail(stage_one(*words))
    assert "damaged 00/000000 view 0 up0e.pillar_features: does not match its checksum" in message
    assert "damaged 00/000001 view 1 logits.row_scale: does not match its checksum" in message
    assert "damaged 00/000001 view 0 the zip directory: cannot be read" in message
    assert "foreign 00/000002 view 1 is of another store: it has scan 08/000000" in message
    assert "foreign 08/000000 view 2 is not among the 2 views" in message
    assert "missing 08/000000 view 0 is not in the store" in message
    assert "6 problems" in message


def test_verify_covers_what_only_other_readers_use(store):
    path = store / FIRST
    data = bytearray(path.read_bytes())
    start, end = read_members(bytes(data)).places["logits/zarr.json"]
    data[(start + end) // 2] ^= 0x10
    path.write_bytes(data)
    assert "logits/zarr.json: does not match its checksum" in fail(stage_one("verify", "--cache", store))


def test_verify_of_a_sample(store):
    output = succeed(stage_one("verify", "--cache", store, "--sample", 3, "--threads", 2))
    assert "3 of 8 scan-views checked: nothing wrong" in output


def test_verify_notices_changed_scans(tmp_path, store, store_scans):
    changed = Path(shutil.copytree(store_scans, tmp_path / "dataset"))
    points = read_points(changed, ScanId("00", "000001")).copy()
    points[7, 2] += 0.25
    points.tofile(scan_path(changed, ScanId("00", "000001")))
    message = fail(stage_one("verify", "--cache", store, "--data", changed))
    assert "changed 00/000001 view 0 the scan on disk is not the one that the teacher saw" in message
    assert "2 problems" in message


@pytest.mark.parametrize("made", ["exact_store", "train_store"])
def test_live_teacher_agrees_with_its_store(request, made, store_scans, reduced_teacher):
    words = (
        "--cache",
        request.getfixturevalue(made),
        "--data",
        store_scans,
        "--teacher",
        reduced_teacher,
        "--device",
        "cpu",
    )
    output = succeed(stage_one("verify", *words, "--live", 2, "--sample", 1))
    assert "Largest difference to the teacher on 2 scan-views" in output
    assert "All as the teacher says." in output
    assert output.count(" ok\n") == (11 if made == "exact_store" else 6)
    assert "WRONG" not in output


def test_live_teacher_contradicts_altered_targets(tmp_path, exact_store, store_scans, reduced_teacher):
    store = Path(shutil.copytree(exact_store, tmp_path / "cache"))
    identity = TargetStore.open(store).identity
    for path in (store / "sequences").rglob("*.zip"):
        members = read_members(path.read_bytes())
        arrays = {name: members.array(name) for name in members.metadata}
        arrays["up2e.pillar_features"] = arrays["up2e.pillar_features"] * np.float32(1.001)
        path.write_bytes(zip_of_group(arrays, members.attributes, identity.encoding))
    words = ("--cache", store, "--data", store_scans, "--teacher", reduced_teacher, "--device", "cpu", "--live", 1)
    message = fail(stage_one("verify", *words))
    assert "8 of 8 scan-views checked: nothing wrong" in message
    assert re.search(r"up2e.pillar_features float32 1.0e-03 1.0e-04 WRONG", message)
    assert "1 array differs more than the encoding explains" in message


def test_live_needs_the_teacher_of_the_store(tmp_path, train_store, store_scans, reduced_teacher):
    import torch

    other = torch.load(reduced_teacher, weights_only=True)
    other["cylinder_3d_spconv_seg.logits.bias"] += 1
    torch.save(other, tmp_path / "other.pt")
    words = ("--cache", train_store, "--data", store_scans, "--device", "cpu", "--live", 1)
    assert "made by the teacher" in fail(stage_one("verify", *words, "--teacher", tmp_path / "other.pt"))
    assert "it needs --data and --teacher" in fail(stage_one("verify", "--cache", train_store, "--live", 1))


def test_live_needs_a_scan_view(tmp_path, train_store, store_scans, reduced_teacher):
    TargetStore.create_or_resume(tmp_path / "cache", TargetStore.open(train_store).identity)
    words = ("--cache", tmp_path / "cache", "--data", store_scans, "--teacher", reduced_teacher, "--live", 1)
    assert "holds no whole scan-view to run the teacher on" in fail(stage_one("verify", *words))


def test_repair_restores_every_byte(tmp_path, store, train_store, store_scans, reduced_teacher):
    changed = Path(shutil.copytree(store_scans, tmp_path / "dataset"))
    words = words_after_dump("repair", changed, reduced_teacher, store, *TRAIN)
    assert "0 wrong files and 0 half-written files to be deleted, 0 scan-views to be dumped" in succeed(
        stage_one(*words)
    )
    flip_byte_of(store / FIRST, "up0e.pillar_features")
    shutil.copy(store / "sequences/08/000000.v1.zarr.zip", store / "sequences/00/000002.v1.zarr.zip")
    shutil.copy(store / "sequences/08/000000.v1.zarr.zip", store / "sequences/08/000000.v2.zarr.zip")
    (store / SECOND).unlink()
    old, young = (store / f"sequences/00/000000.v0.zarr.zip.{name}.partial" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"PK")
    os.utime(old, (time.time() - 7200, time.time() - 7200))

    broken = scan_files(store)
    output = succeed(stage_one(*words, "--dry-run"))
    assert "3 wrong files and 1 half-written file would be deleted, 3 scan-views would be dumped" in output
    assert scan_files(store) == broken
    assert half_written(store) == [old, young]

    output = succeed(stage_one(*words))
    assert "3 scan-views written" in output
    assert "The store is whole." in output
    assert scan_files(store) == scan_files(train_store)
    assert half_written(store) == [young]


def test_repair_dumps_changed_scans_again(tmp_path, store, train_store, store_scans, reduced_teacher):
    changed = Path(shutil.copytree(store_scans, tmp_path / "dataset"))
    shutil.copy(scan_path(store_scans, ScanId("08", "000000")), scan_path(changed, ScanId("00", "000001")))
    shutil.rmtree(changed / "sequences/00/labels")
    output = succeed(stage_one(*words_after_dump("repair", changed, reduced_teacher, store, *TRAIN)))
    assert "changed    00/000001 view 1" in output
    assert "2 scan-views written" in output
    after, before = scan_files(store), scan_files(train_store)
    assert {name for name in after if after[name] != before[name]} == {
        "sequences/00/000001.v0.zarr.zip",
        "sequences/00/000001.v1.zarr.zip",
    }


def test_repair_with_the_scans_of_another_dataset_asks_before_it_deletes(
    tmp_path, store, train_store, store_scans, reduced_teacher
):
    write_dataset(tmp_path / "other", {"00": 3, "08": 1}, points=800, seed=100)
    words = words_after_dump("repair", tmp_path / "other", reduced_teacher, store, *TRAIN)
    message = fail(stage_one(*words))
    assert "8 of 8 files would be deleted (8 changed)" in message
    assert "--data is likely not the dataset that was dumped" in message
    assert "add --delete-many." in message
    assert "8 of 8 files would be deleted" in succeed(stage_one(*words, "--dry-run"))
    assert scan_files(store) == scan_files(train_store)

    assert "8 scan-views written" in succeed(stage_one(*words, "--delete-many"))
    words = words_after_dump("repair", store_scans, reduced_teacher, store, *TRAIN)
    assert "The store is whole." in succeed(stage_one(*words, "--delete-many"))
    assert scan_files(store) == scan_files(train_store)


def test_repair_refuses_other_settings_before_it_deletes(store, store_scans, reduced_teacher):
    flip_byte_of(store / FIRST, "logits")
    broken = scan_files(store)
    words = words_after_dump("repair", store_scans, reduced_teacher, store, "splits=[train, val]", "profile=train")
    message = fail(stage_one(*words))
    assert "views.count: the store has 2, this run has 1" in message
    assert scan_files(store) == broken


def test_repair_says_what_it_cannot_dump(store, store_scans, reduced_teacher):
    flip_byte_of(store / "sequences/08/000000.v0.zarr.zip", "logits")
    words = words_after_dump("repair", store_scans, reduced_teacher, store, *TRAIN, "splits=[train]")
    message = fail(stage_one(*words))
    assert "1 scan-view could not be dumped" in message
    assert "08/000000 view 0" in message


def test_looking_after_a_store_needs_no_spconv(tmp_path, train_store, store_scans):
    program = tmp_path / "without_spconv.py"
    program.write_text(
        "import sys\n"
        "sys.modules['spconv'] = sys.modules['spconv.pytorch'] = None\n"
        "from stage1_dump_teacher.__main__ import main\n"
        "cache, data, out = sys.argv[1:]\n"
        "for words in (['info', '--data', data], ['verify', '--data', data], ['convert', '--to', f'{out}/c',\n"
        "              '--layers', 'up0e'], ['show-targets', '--scan', '00/000000', '--out', f'{out}/e.npz']):\n"
        "    main([words[0], '--cache', cache, *words[1:]], standalone_mode=False)\n"
        "main(['merge', '--from', f'{out}/c', '--to', f'{out}/m'], standalone_mode=False)\n"
    )
    output = finish(start("-c", f"import runpy; runpy.run_path({str(program)!r})", train_store, store_scans, tmp_path))
    assert "8 scan-views copied" in output


@pytest.mark.parametrize("command", ["info", "verify", "repair", "convert", "merge", "show-targets"])
def test_help_shows_how(command):
    output = succeed(stage_one(command, "--help"))
    assert f"polar-distill {command} " in output
    assert all(option.help for option in command_named(main, command).params)


@pytest.mark.parametrize("target", ["store-info", "store-verify", "store-repair", "store-convert"])
def test_targets_of_the_makefile(target):
    variables = ("DATA=/a b", "TEACHER=t.pt", "CACHE=c", "TO=d", "LIVE=2", "SET=a=1", "CONFIG=x", "DELETE_MANY=1")
    words = command_line(target, *variables)
    assert words[1:3] == ["-m", "polar_distill"]
    assert f"store-{words[3]}" == target
    assert words[words.index("--cache") + 1] == "c"
    known = {option for parameter in command_named(main, words[3]).params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    needed = {"store-repair": "DATA", "store-convert": "TO"}.get(target)
    if needed:
        assert f"{needed} is not set" in make(target).stderr
