"""What `--ray` refuses, and that nothing else needs Ray."""

import socket
import sys

import pytest

from common.base import cluster as cluster_module
from common.base.errors import PolarDistillError, SettingsError
from stage1_dump_teacher.__main__ import main as stage_one
from stage2_train_student.__main__ import main as stage_two
from tests.comparison.test_sweep import sweep_words
from tests.shared.reduced import STREET_GRID, command, dump_words, fail, finish, start


@pytest.fixture
def words(streets, reduced_teacher, tmp_path) -> list[str]:
    return dump_words(streets, reduced_teacher, tmp_path / "cache", STREET_GRID, "splits=[train]")


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_nothing_answers_is_named(words, streets, street_cache, tmp_path, scheme):
    address = f"{scheme}127.0.0.1:{unused_port()}"
    refusal = f"--ray {address}: nothing answers there"
    assert refusal in fail(command(stage_one, *words, "--ray", address))
    assert refusal in fail(command(stage_two, *sweep_words(streets, street_cache, tmp_path, ray=address)))


def test_a_machine_that_keeps_silent_is_given_up(monkeypatch):
    """A listener whose queue is full answers no other."""
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 0.3)
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        with pytest.raises(SettingsError, match="nothing answers there"):
            cluster_module.check_answers(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["", "somewhere", "host:", "host:port", ":6379", "http://host"])
def test_what_is_no_address_is_refused(words, address):
    assert "is no address" in fail(command(stage_one, *words, "--ray", address))


def test_no_cluster_of_this_machine_is_an_error(words, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "no Ray cluster can be used there" in fail(command(stage_one, *words, "--ray", "auto"))


def test_the_extra_is_named_where_ray_is_not_installed(words, streets, street_cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for main, chosen in ((stage_one, words), (stage_two, sweep_words(streets, street_cache, tmp_path))):
        assert "pip install 'polar-distill[cluster]'" in fail(command(main, *chosen, "--ray", "auto"))


def test_two_ways_to_split_the_scans_are_refused(words):
    assert "leave out --shard" in fail(command(stage_one, *words, "--ray", "auto", "--shard", "0/2"))


@pytest.mark.parametrize(
    ("device", "refusal"),
    [("cuda", "no machine of the cluster has a GPU"), ("cuda:1", "a cluster gives each worker a GPU of its own")],
)
def test_a_device_that_the_cluster_cannot_give_is_refused(cluster, words, device, refusal):
    assert refusal in fail(command(stage_one, *words, "--ray", cluster.address, "--device", device))


def test_a_folder_that_a_machine_lacks_is_named(tmp_path):
    with pytest.raises(PolarDistillError, match="Start the command in a folder that every machine"):
        cluster_module.work_in(tmp_path / "elsewhere")


def test_ray_is_imported_by_nothing_else():
    modules = "stage1_dump_teacher.cluster, stage2_train_student.comparison.sweep_command"
    finish(start("-c", f"import sys, {modules}; assert 'ray' not in sys.modules"))
