"""A dump by many machines: byte for byte that of one process, whatever dies meanwhile."""

import subprocess
import time
from pathlib import Path

import pytest

from stage1_dump_teacher.__main__ import main as stage_one
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import STREET_GRID, command, dump_words, finish, start, succeed
from tests.shared.small_cluster import SLEEPING_TEACHER, kill_node
from tests.shared.small_stores import scan_files

SLEEPY = (f"teacher={SLEEPING_TEACHER}", "layers=[height]", "splits=[train]", "views.count=2")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Twenty scans, small ones."""
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder / "dataset", {"00": 20}, points=300)
    (folder / "teacher.txt").write_text("0.15")
    (folder / "quick.txt").write_text("0")
    return folder


@pytest.fixture(scope="module")
def alone(scans) -> dict[str, bytes]:
    """The scan files that one process dumps."""
    words = dump_words(scans / "dataset", scans / "quick.txt", scans / "alone", STREET_GRID, *SLEEPY)
    succeed(command(stage_one, *words))
    return scan_files(scans / "alone")


def sleepy_words(scans: Path, cache: Path, address: str, *overrides: str) -> list[str]:
    words = dump_words(scans / "dataset", scans / "teacher.txt", cache, STREET_GRID, *SLEEPY, *overrides)
    return ["-m", "polar_distill", *words, "--ray", address]


def wait_for_files(process: "subprocess.Popen[str]", cache: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(cache.rglob("*.zarr.zip"))) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_node_that_is_killed_costs_nothing_but_time(cluster, scans, alone, tmp_path):
    process = start(*sleepy_words(scans, tmp_path / "cache", cluster.address))
    wait_for_files(process, tmp_path / "cache", 8)
    kill_node(cluster, next(iter(cluster.worker_nodes)))
    output = finish(process)
    assert "40 scan-views written" in output
    assert "a worker has ended" in output
    assert scan_files(tmp_path / "cache") == alone
