"""A dump by many machines: byte for byte that of one process, whatever ends meanwhile."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.base.cluster import Share, machines
from common.base.config import load_settings
from common.scans.formats.semantic_kitti import scan_path
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.skipped import read_skipped
from stage1_dump_teacher import cluster as cluster_module
from stage1_dump_teacher.__main__ import main as stage_one
from stage1_dump_teacher.cluster_worker import DumpJob, DumpWorker
from stage1_dump_teacher.settings import DumpSettings
from tests.shared.dataset_writer import street_scan, write_dataset, write_scan
from tests.shared.reduced import (
    CONFIGS,
    DATASET,
    STREET_GRID,
    command,
    dump,
    dump_words,
    fail,
    finish,
    one_thread,
    start,
    succeed,
)
from tests.shared.small_cluster import DEADLY_TEACHER, SLEEPING_TEACHER, add_node, kill_node, small
from tests.shared.small_stores import scan_files

FIRST, SECOND = ScanId("00", "000000"), ScanId("00", "000001")
TOY = ("layers=[height]", "splits=[train]")
SLEEPY = (f"teacher={SLEEPING_TEACHER}", *TOY, "views.count=2")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A folder with a dataset of twenty small scans, and teachers that take a while."""
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder / "dataset", {"00": 20}, points=300)
    for name, seconds in (("quick", 0.0), ("slow", 0.15), ("slower", 0.5)):
        (folder / f"{name}.txt").write_text(str(seconds))
    return folder


@pytest.fixture(scope="module")
def alone(scans) -> dict[str, bytes]:
    """The scan files that one process dumps."""
    succeed(dump(scans / "dataset", scans / "quick.txt", scans / "alone", STREET_GRID, *SLEEPY))
    return scan_files(scans / "alone")


@pytest.fixture
def data(tmp_path) -> Path:
    """A dataset of three scans that a test may spoil, with a file that stands for a teacher's checkpoint."""
    write_dataset(tmp_path / "dataset", {"00": 3}, points=300)
    (tmp_path / "teacher.txt").write_text("20")
    return tmp_path / "dataset"


def started(scans: Path, cache: Path, address: str, teacher: str = "slow") -> "subprocess.Popen[str]":
    words = dump_words(scans / "dataset", scans / f"{teacher}.txt", cache, STREET_GRID, *SLEEPY)
    return start("-m", "polar_distill", *words, "--ray", address)


def wait_for_files(process: "subprocess.Popen[str]", cache: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while written(cache) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(cache: Path) -> int:
    return len(list(cache.rglob("*.zarr.zip")))


def test_nodes_that_are_killed_cost_nothing_but_time(cluster, scans, alone, tmp_path):
    """First another node takes over; then none is left until one joins."""
    process = started(scans, tmp_path / "cache", cluster.address)
    wait_for_files(process, tmp_path / "cache", 8)
    first, second = cluster.worker_nodes
    kill_node(cluster, first)
    wait_for_files(process, tmp_path / "cache", 20)
    kill_node(cluster, second)
    add_node(cluster)
    output = finish(process)
    assert "40 scan-views written" in output
    assert output.count("a worker has ended; others do the ") >= 2
    assert scan_files(tmp_path / "cache") == alone


def test_machines_need_not_be_alike_and_the_largest_may_be_lost(cluster, scans, alone, tmp_path):
    node = cluster.add_node(num_cpus=3, num_gpus=0, **small())
    process = started(scans, tmp_path / "cache", cluster.address)
    wait_for_files(process, tmp_path / "cache", 3)
    kill_node(cluster, node)
    assert "40 scan-views written" in finish(process)
    assert scan_files(tmp_path / "cache") == alone


def test_processes_read_and_write_for_workers(cluster, scans, alone, tmp_path):
    words = dump_words(scans / "dataset", scans / "quick.txt", tmp_path / "cache", STREET_GRID, *SLEEPY)
    further = ("--set", "processes=true", "--set", "writers=1")
    assert "40 scan-views written" in succeed(command(stage_one, *words, *further, "--ray", cluster.address))
    assert scan_files(tmp_path / "cache") == alone


def test_processes_of_a_worker_end_when_it_is_told_to(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    overrides = (f"dataset={DATASET}", *SLEEPY, f"grid.shape={list(STREET_GRID)}", "processes=true", "writers=1")
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", overrides)
    job = DumpJob(settings, scans / "dataset", [scans / "quick.txt"], str(tmp_path / "cache"), tmp_path)
    worker, before = DumpWorker(), set(multiprocessing.active_children())
    with one_thread():
        worker.load(job, Share(1, 0), 2)
    assert len(set(multiprocessing.active_children()) - before) == 2
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"
    worker.close()
    assert set(multiprocessing.active_children()) <= before


def test_a_wait_for_machines_is_said_once(cluster, scans, alone, tmp_path, monkeypatch):
    absent = iter([True, True, True])
    monkeypatch.setattr(cluster_module, "machines", lambda: {} if next(absent, False) else machines())
    words = dump_words(scans / "dataset", scans / "quick.txt", tmp_path / "cache", STREET_GRID, *SLEEPY)
    output = succeed(command(stage_one, *words, "--ray", cluster.address))
    assert output.count("no machine of the cluster has cores now; waiting for one to join") == 1
    assert scan_files(tmp_path / "cache") == alone


def test_ctrl_c_stops_and_the_same_command_dumps_the_rest(cluster, scans, alone, tmp_path):
    process = started(scans, tmp_path / "cache", cluster.address)
    wait_for_files(process, tmp_path / "cache", 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    reached = written(tmp_path / "cache")
    assert f"{reached} scan-views written" in output
    assert f"Stopped with {40 - reached} scan-views left" in output
    assert not list(tmp_path.rglob("*.partial"))
    words = dump_words(scans / "dataset", scans / "quick.txt", tmp_path / "cache", STREET_GRID, *SLEEPY)
    output = succeed(command(stage_one, *words, "--ray", cluster.address))
    assert f"{40 - reached} scan-views written" in output
    assert f"{reached} were there before" in output
    assert scan_files(tmp_path / "cache") == alone


def test_workers_end_with_a_dump_that_is_killed_and_the_store_stays_usable(cluster, scans, alone, tmp_path):
    process = started(scans, tmp_path / "cache", cluster.address, "slower")
    wait_for_files(process, tmp_path / "cache", 2)
    process.kill()
    process.communicate()
    reached, deadline = -1, time.monotonic() + 60
    while reached != (reached := written(tmp_path / "cache")):
        assert time.monotonic() < deadline
        time.sleep(2)
    assert reached < 40, "workers went on without the command"
    succeed(dump(scans / "dataset", scans / "quick.txt", tmp_path / "cache", STREET_GRID, *SLEEPY))
    assert scan_files(tmp_path / "cache") == alone


def test_bad_scans_are_skipped_or_stop_the_dump_as_in_one_process(cluster, data, tmp_path):
    scan_path(data, SECOND).write_bytes(b"")
    toy = ("teacher=tests.extend.toy_teacher:HeightTeacher", *TOY)
    words = dump_words(data, tmp_path / "teacher.txt", tmp_path / "cache", STREET_GRID, *toy)
    words += ["--ray", cluster.address]
    assert "the scan is empty (0 bytes)" in fail(command(stage_one, *words))
    output = succeed(command(stage_one, *words, "--set", "on_bad_scan=skip"))
    assert "1 scan-view skipped" in output
    store = TargetStore.open(tmp_path / "cache")
    assert store.finished() == {(FIRST, 0), (ScanId("00", "000002"), 0)}
    assert "empty (0 bytes)" in read_skipped(store, store.finished())[SECOND, 0]


def test_a_scan_that_ends_its_workers_is_named_and_the_others_are_dumped(cluster, data, tmp_path):
    write_scan(data, FIRST, *street_scan(10))
    words = dump_words(
        data, tmp_path / "teacher.txt", tmp_path / "cache", STREET_GRID, f"teacher={DEADLY_TEACHER}", *TOY
    )
    message = fail(command(stage_one, *words, "--ray", cluster.address))
    assert "3 times workers ended while they did scan 00/000000 view 0" in message
    assert TargetStore.open(tmp_path / "cache").finished() == {(SECOND, 0), (ScanId("00", "000002"), 0)}


def test_workers_that_never_load_the_teacher_end_the_dump(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "SETTLE_SECONDS", 0.5)
    deadly = "teacher=tests.shared.small_cluster:DeadlyLoadingTeacher"
    words = dump_words(data, tmp_path / "teacher.txt", tmp_path / "cache", STREET_GRID, deadly, *TOY)
    message = fail(command(stage_one, *words, "--ray", cluster.address))
    assert "3 times workers ended while they loaded the teacher" in message


def test_a_store_of_something_else_is_refused(cluster, data, tmp_path, scans, alone):
    shutil.copytree(scans / "alone", tmp_path / "cache")
    toy = ("teacher=tests.extend.toy_teacher:HeightTeacher", *TOY)
    words = dump_words(data, tmp_path / "teacher.txt", tmp_path / "cache", STREET_GRID, *toy)
    message = fail(command(stage_one, *words, "--ray", cluster.address))
    assert "this store was made with other settings; nothing was written" in message
