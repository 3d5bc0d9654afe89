"""The benchmark of GPUs runs whole on a CPU, small: what a GPU is held against can be trusted to be measured there."""

import json
import subprocess
import sys

from tests.shared.reduced import REPOSITORY


def test_every_part_runs_small_on_a_cpu():
    words = ("--device", "cpu", "--views", "2", "--repeats", "1", "--minutes", "20", "--json")
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == {}
    assert found["teacher"]["float32"]["logits"] < 1e-4
    assert found["student"]["float32"]["logits"] < 1e-4
    assert found["copies"]["late"] == 0
    assert found["dump"]["worst_error_over_limit"] < 1
    assert found["gradients"]["cpu float32"] == {"gradient": 0.0, "terms": 0.0}
    assert {"cache 2 float32", "none 2 float32", "online 2 float32"} <= found.keys()
    assert found["budgets"]["late_copies"]["met"] is True
