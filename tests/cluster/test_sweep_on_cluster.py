"""A sweep by many machines: the students of one process, though a machine is lost in the middle."""

import re
import signal
import time

from common.training.recorder import read_metrics
from common.training.run_lock import LOCK_FILE
from stage2_train_student.__main__ import main as stage_two
from tests.comparison.test_sweep import QUICK, sweep_words
from tests.shared.reduced import command, experiment_file, finish, saved, start, succeed, train
from tests.shared.small_cluster import kill_node
from tests.student.test_resuming import assert_same_run


def test_runs_of_a_lost_machine_go_on_bit_for_bit_elsewhere(cluster, streets, street_cache, runs):
    out, steps = runs / "sweep", ("epochs=8", "steps=12")
    words = sweep_words(streets, street_cache, out, *steps, experiments=experiment_file("vpd"), seeds="0-1")
    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, out / "vpd/seed0")
    wait_for_step(process, out / "vpd/seed1")
    kill_node(cluster, next(iter(cluster.worker_nodes)))
    output = finish(process)
    assert "lost its machine and goes on elsewhere" in output
    assert len(re.findall(r"vpd/seed\d +finished after 12 steps", output)) == 2
    logs = [(out / f"vpd/seed{seed}/train.log").read_text() for seed in (0, 1)]
    assert sum("resuming" in log for log in logs) == 1
    for seed in (0, 1):
        alone = runs / f"alone{seed}"
        succeed(train(streets, street_cache, alone, *QUICK, *steps, f"seed={seed}", name="vpd"))
        assert_same_run(out / f"vpd/seed{seed}", alone)


def test_a_run_outlives_no_sweep_that_is_stopped_or_killed(cluster, streets, street_cache, runs):
    """It saves its state, and the same command goes on, on a cluster or without one."""
    out, folder = runs / "sweep", runs / "sweep/vpd/seed0"
    words = sweep_words(streets, street_cache, out, "epochs=100", experiments=experiment_file("vpd"), seeds="0-2")
    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, folder)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert re.search(r"vpd/seed0 +stopped", output)
    assert re.search(r"vpd/seed2 +not started", output)
    first = saved(folder)["progress"]["step"]

    process = start("-m", "stage2_train_student", *words, "--ray", cluster.address)
    wait_for_step(process, folder, first + 1)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while (folder / LOCK_FILE).read_text():
        assert time.monotonic() < deadline, "the run goes on without its sweep"
        time.sleep(0.02)
    steps = ("epochs=100", f"steps={saved(folder)['progress']['step'] + 1}")
    words = sweep_words(streets, street_cache, out, *steps, experiments=experiment_file("vpd"))
    succeed(command(stage_two, *words))
    succeed(train(streets, street_cache, runs / "alone", *QUICK, *steps, name="vpd"))
    assert_same_run(folder, runs / "alone")


def wait_for_step(process, folder, step: int = 1) -> None:
    """Wait until a run has recorded a step."""
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and last_step(folder) >= step):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(folder) -> int:
    return max((record["step"] for record in read_metrics(folder, "train")), default=0)
