"""What `--ray` refuses, and that nothing else needs Ray."""

import socket
import sys

import pytest

from common.base import cluster as cluster_module
from common.base.cluster import Share, connected, machines, share_of, share_on
from common.base.errors import PolarDistillError, SettingsError
from stage1_dump_teacher.__main__ import main as stage_one
from stage2_train_student.__main__ import main as stage_two
from tests.comparison.test_sweep import sweep_words
from tests.shared.reduced import STREET_GRID, command, dump_words, fail, finish, start
from tests.shared.small_cluster import kill_node, small


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


def test_auto_is_the_cluster_that_the_environment_names(words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    assert "nothing answers there" in fail(command(stage_one, *words, "--ray", "auto"))


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


def test_each_worker_takes_a_gpu_and_its_part_of_the_cores_where_there_are_gpus(cluster):
    node = cluster.add_node(num_cpus=7, num_gpus=2, **small())
    with connected(cluster.address):
        with_gpu, without, here = share_of("auto"), share_of("cpu"), machines()[node.node_id]
        assert (with_gpu, with_gpu.device, with_gpu.places(here)) == (Share(3, 1), "cuda", 2)
        assert (without, without.device, without.places(here)) == (Share(4, 0), "cpu", 1)
        assert sum(map(share_of("cpu", 1).places, machines().values())) == 7 + 2
    kill_node(cluster, node)


@pytest.mark.parametrize(
    ("machine", "device", "share", "places"),
    [
        ({"CPU": 2, "GPU": 4}, "cuda", Share(0, 1), 4),
        ({"CPU": 64, "GPU": 8}, "cuda", Share(8, 1), 8),
        ({"CPU": 64}, "cuda", Share(64, 1), 0),
        ({"CPU": 9, "GPU": 4}, "cpu", Share(4, 0), 2),
        ({"CPU": 1}, "cpu", Share(1, 0), 1),
        ({"CPU": 0.5}, "cpu", Share(1, 0), 0),
        ({}, "cpu", Share(1, 0), 0),
    ],
)
def test_workers_take_of_each_machine_what_it_has(machine, device, share, places):
    assert share_on(machine, device) == share
    assert share.places(machine) == places


def test_a_folder_that_a_machine_lacks_is_named(tmp_path):
    with pytest.raises(PolarDistillError, match="Start the command in a folder that every machine"):
        cluster_module.work_in(tmp_path / "elsewhere")


def test_ray_is_imported_by_nothing_else():
    modules = "stage1_dump_teacher.cluster, stage2_train_student.comparison.sweep_command"
    finish(start("-c", f"import sys, {modules}; assert 'ray' not in sys.modules"))
