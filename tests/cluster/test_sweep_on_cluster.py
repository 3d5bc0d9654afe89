"""A sweep by many machines: the students of one process, though a machine is lost in the middle."""

import re
import time

from common.training.recorder import read_metrics
from tests.comparison.test_sweep import QUICK, sweep_words
from tests.shared.reduced import experiment_file, finish, start, succeed, train
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


def wait_for_step(process, folder) -> None:
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and read_metrics(folder, "train")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
