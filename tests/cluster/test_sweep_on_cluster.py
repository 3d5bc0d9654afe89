"""A sweep by many machines: the students of one process, though a machine is lost in the middle."""

import re
import signal
import time

from common.base.cluster import machines
from common.base.errors import TrainingError
from common.training.recorder import read_metrics
from common.training.run_lock import locked
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.comparison import cluster as cluster_module
from tests.comparison.test_sweep import QUICK, sweep_words
from tests.shared.reduced import command, experiment_file, finish, saved, start, succeed, train
from tests.shared.resumed_runs import assert_same_run
from tests.shared.small_cluster import add_node, kill_node

STATE_SAVED = 6
"""An epoch of five steps has ended, and the state was saved, before this step."""


def test_runs_of_lost_machines_go_on_bit_for_bit_elsewhere(cluster, streets, street_cache, runs):
    out, steps = runs / "sweep", ("epochs=100", "steps=12")
    words = sweep_words(streets, street_cache, out, *steps, experiments=experiment_file("vpd"), seeds="0-1")
    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, out / "vpd/seed0", STATE_SAVED)
    for node in list(cluster.worker_nodes):
        kill_node(cluster, node)
    add_node(cluster)
    output = finish(process)
    assert "vpd/seed0 lost its machine and goes on elsewhere" in output
    assert len(re.findall(r"vpd/seed\d +finished after 12 steps", output)) == 2
    assert "resuming" in (out / "vpd/seed0/train.log").read_text()
    for seed in (0, 1):
        alone = runs / f"alone{seed}"
        succeed(train(streets, street_cache, alone, *QUICK, *steps, f"seed={seed}", name="vpd"))
        assert_same_run(out / f"vpd/seed{seed}", alone)


def test_runs_end_with_a_sweep_that_is_stopped_or_killed(cluster, streets, street_cache, runs):
    """The same command goes on, on a cluster or without one."""
    out, folder = runs / "sweep", runs / "sweep/vpd/seed0"
    words = sweep_words(streets, street_cache, out, "epochs=100", experiments=experiment_file("vpd"), seeds="0-2")
    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, folder, 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert re.search(r"vpd/seed0 +stopped", output)
    assert re.search(r"vpd/seed2 +not started", output)
    reached = saved(folder)["progress"]["step"]
    assert read_metrics(folder, "train")[-1]["step"] == reached

    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, folder, reached + STATE_SAVED)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while not is_free(folder):
        assert time.monotonic() < deadline, "the run goes on without its sweep"
    steps = ("epochs=100", f"steps={saved(folder)['progress']['step'] + 1}")
    words = sweep_words(streets, street_cache, out, *steps, experiments=experiment_file("vpd"))
    succeed(command(stage_two, *words))
    succeed(train(streets, street_cache, runs / "alone", *QUICK, *steps, name="vpd"))
    assert_same_run(folder, runs / "alone")


def test_a_wait_for_machines_is_said_once(cluster, streets, street_cache, tmp_path, monkeypatch):
    absent = iter([True, True, True])
    monkeypatch.setattr(cluster_module, "machines", lambda: {} if next(absent, False) else machines())
    words = sweep_words(streets, street_cache, tmp_path, "steps=1", experiments=experiment_file("vpd"))
    output = succeed(command(stage_two, *words, "--ray", cluster.address))
    assert output.count("no machine of the cluster has 1 core now; waiting for one to join") == 1
    assert "finished after 1 step" in output


def is_free(folder) -> bool:
    try:
        with locked(folder):
            return True
    except TrainingError:
        return False


def wait_for_step(process, folder, step: int) -> None:
    """Wait until a run has recorded a step."""
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and last_step(folder) >= step):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(folder) -> int:
    return max((record["step"] for record in read_metrics(folder, "train")), default=0)
