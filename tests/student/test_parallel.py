"""Several processes train one student: two, connected by gloo, started as a user starts them."""

import json
import math
import os
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest
import torch
from torch import nn

from common.base.errors import SettingsError
from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.training.predictor import Predictor
from common.training.processes import ALONE, Processes, started_processes
from common.training.recorder import read_metrics
from common.training.shared_batch_norm import share_batch_norm
from stage2_train_student.evaluation.evaluate import report, student_logits
from stage2_train_student.training.experiment import check_divisible, new_student
from tests.shared.kitti import list_scans
from tests.shared.reduced import (
    NARROW,
    STREET_GRID,
    finish,
    one_thread,
    reduced_experiment,
    saved,
    start,
    succeed,
    train,
    train_words,
)
from tests.shared.shared_gradients import CURVE, NOTHING_BY_CHANCE, SIZES

CPU = torch.device("cpu")
CLOCKS = ("seconds", "waited")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")

SHARED = (*NOTHING_BY_CHANCE, "batch_size=4", "epochs=2", 'validate_on=["00"]', "optimiser.learning_rate=2e-5")
"""Four steps over five scans: of four scans, and of one, of which a process has no share."""

EVERYTHING = (
    *("batch_size=2", "epochs=2", "validate_on=[]", "optimiser.accumulate=2", "optimiser.clip_norm=1.0"),
    *("averaging=0.9", "sync_batch_norm=false", "optimiser.schedule.kind=cosine"),
)
"""Four steps with DropBlock; batches of two, two and one scans make two steps an epoch."""


def start_two(*words: Any) -> "subprocess.Popen[str]":
    """Start two processes of the train command by torchrun; `--` keeps torchrun from reading --run as its own."""
    return start(*TORCHRUN, "stage2_train_student", "--", *words)


def numbers_of(line: dict[str, Any]) -> dict[str, Any]:
    """A recorded line without what a clock says."""
    return {name: value for name, value in line.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory, streets, street_cache):
    """A run of `SHARED` by two processes."""
    run = tmp_path_factory.mktemp("shared") / "run"
    output = finish(start_two(*train_words(streets, street_cache, run, *SHARED)))
    yield run, output
    shutil.rmtree(run)


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory, streets, street_cache):
    """A run of `EVERYTHING` by two processes without any interruption."""
    run = tmp_path_factory.mktemp("straight") / "run"
    finish(start_two(*train_words(streets, street_cache, run, *EVERYTHING)))
    yield run
    shutil.rmtree(run)


# The same training as in one process


@pytest.fixture(scope="module")
def in_float64(streets, street_cache):
    """What two processes and one found in float64, by batch and over a few steps."""
    output = finish(start(*TORCHRUN, "tests.shared.shared_gradients", streets, street_cache))
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_losses_gradients_and_statistics_are_those_of_one_process(in_float64):
    results = in_float64[:-1]
    assert [result["scans"] for result in results] == list(SIZES)
    for result in results:
        assert {"cross_entropy", "lovasz", "logit", "vpd", "lwd"} < result["alone"].keys()
        assert min(result["alone"].values()) > 0
        assert result["shared"] == pytest.approx(result["alone"], rel=1e-10)
        assert result["gradients"] < 1e-9
        assert result["statistics"] < 1e-12


def test_two_processes_have_the_loss_curve_of_one_with_the_whole_batch(in_float64):
    """In float64: what rounding does to float32 grows from step to step, on each kind of CPU to another size."""
    curves = in_float64[-1]
    assert len(curves["alone"]) == len(CURVE)
    for alone, together in zip(curves["alone"], curves["together"], strict=True):
        assert together == pytest.approx(alone, rel=1e-7)
    assert len({line["loss"] for line in curves["alone"]}) == len(CURVE)


def test_the_command_shares_its_batches_likewise(streets, street_cache, runs, shared_run):
    """The first step, whose losses are those of the same weights; what it does to them is compared in float64."""
    succeed(train(streets, street_cache, runs / "one", *SHARED, "steps=1"))
    [one], two = (read_metrics(run, "train") for run in (runs / "one", shared_run[0]))
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    assert all(line.keys() == one.keys() for line in two)
    for name in one.keys() - {*CLOCKS, "gradient_norm", "kind"}:
        assert two[0][name] == pytest.approx(one[name], rel=1e-4, abs=1e-9), name


def test_metrics_over_all_processes_are_exact(streets, shared_run):
    """Counted by two processes for the five scans, and by one here."""
    run, _ = shared_run
    settings = reduced_experiment(STREET_GRID, NARROW, *SHARED)
    label_map = load_label_map(settings.dataset)
    student = new_student(settings, label_map)
    student.load_state_dict(torch.load(run / "student_last.pt", weights_only=True), strict=True)
    scans = list_scans(streets, ["00"])
    with one_thread():
        predictor = Predictor(student_logits(student), settings.grid.grid(), CPU)
        matrix = predictor.confusion(Dataset.open(streets, label_map), scans)
    counted = report(matrix, label_map)
    last = read_metrics(run, "validation")[-1]
    assert (last["miou"], last["iou"]) == (counted["miou"], counted["iou"])


def test_one_process_writes_and_speaks(shared_run):
    run, output = shared_run
    names = {path.name for path in run.iterdir()}
    files = {"settings.yaml", "environment.json", "metrics.jsonl", "last.pt", "student_last.pt", "student_best.pt"}
    assert names == files | {"tensorboard", "finished.json", "run.lock", "seen.json"}
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert [line["epoch"] for line in read_metrics(run, "validation")] == [1, 2]
    assert output.count("epochs finished; best mIoU") == 1
    assert output.count("sequences without scans on this disk, left out") == 1
    assert output.count("epoch 1: mIoU") == 1
    assert not [name for part in ("student", "distillation") for name in saved(run)[part] if "module" in name]


def test_batch_norms_of_each_process_alone_train_otherwise(streets, street_cache, runs, straight_run):
    succeed(train(streets, street_cache, runs / "one", *EVERYTHING, "steps=1"))
    [alone], together = read_metrics(runs / "one", "train"), read_metrics(straight_run, "train")
    assert [line["step"] for line in together] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in together)
    assert alone["vpd"] != pytest.approx(together[0]["vpd"], rel=1e-4)
    assert len(saved(straight_run)["random_states_of_others"]) == 1


# Stopping and going on


def test_sigterm_stops_all_at_one_step_and_the_run_goes_on_bit_for_bit(streets, street_cache, runs, straight_run):
    run = runs / "stopped"
    process = start_two(*train_words(streets, street_cache, run, *EVERYTHING))
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert "SIGTERM: stopping after this step" in output
    assert 1 <= saved(run)["progress"]["step"] < 4, output
    words = train_words(streets, street_cache, run, *EVERYTHING, options=("--resume",))
    assert "another number of processes" not in finish(start_two(*words))
    resumed, straight = saved(run), saved(straight_run)
    for part in ("student", "average", "distillation"):
        assert all(torch.equal(resumed[part][name], value) for name, value in straight[part].items()), part
    for name in ("random_state", "random_states_of_others"):
        states = [saved_run[name] for saved_run in (resumed, straight)]
        cpu = [[state["cpu"] for state in (each if isinstance(each, list) else [each])] for each in states]
        assert all(torch.equal(one, other) for one, other in zip(*cpu, strict=True)), name
    lines = [list(map(numbers_of, read_metrics(folder, "train"))) for folder in (run, straight_run)]
    assert lines[0] == lines[1]


def test_one_process_goes_on_where_two_stopped_and_says_what_changes(streets, street_cache, runs, straight_run):
    run, state = runs / "fewer", saved(straight_run)
    run.mkdir(parents=True)
    torch.save(state | {"progress": state["progress"] | {"epoch": 1}}, run / "last.pt")
    output = succeed(train(streets, street_cache, run, *EVERYTHING, options=("--resume",)))
    assert "another number of processes than before, so random numbers differ" in output
    assert saved(run)["progress"]["step"] == 6
    assert saved(run)["random_states_of_others"] == []


def test_one_process_alone_computes_nothing_more():
    value, rows = torch.ones(()), torch.ones(3, 2)
    assert ALONE.mean(value, 7) is value
    assert ALONE.sum(rows) is ALONE.rows(rows) is ALONE.gather(rows)[0] is rows
    assert (ALONE.any(1), ALONE.any(0)) == (True, False)


# Refused


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    settings = reduced_experiment(STREET_GRID, "batch_size=6")
    check_divisible(settings, Processes(1, 3))
    with pytest.raises(SettingsError, match=r"6 scans do not divide among 4 processes.*set batch_size=8"):
        check_divisible(settings, Processes(0, 4))


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="cuda:1' is one GPU"), started_processes("cuda:1"):
        pass


# Batch norm over processes


@pytest.mark.parametrize("shape", [(40, 6), (3, 6, 8, 5)])
def test_shared_batch_norm_of_one_process_is_batch_norm(shape):
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain, shared = nn.Sequential(kind(6)).double(), nn.Sequential(kind(6)).double()
    nn.init.normal_(plain[0].weight)
    shared.load_state_dict(plain.state_dict())
    share_batch_norm(shared, ALONE)
    values, weights = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    values = 3.0 + 2.0 * values
    results = []
    for network in (plain, shared):
        inputs = values.clone().requires_grad_()
        trained = network(inputs)
        (trained * weights).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        results.append([trained.detach(), inputs.grad, *gradients, network.eval()(values).detach()])
    assert list(shared.state_dict()) == list(plain.state_dict())
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-12, atol=1e-12, msg=name)
