"""Many runs from one cache: what is finished is skipped, what stopped goes on bit for bit, what fails is named."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.scans.formats.semantic_kitti import scan_path
from common.scans.scan_id import ScanId
from common.targets.store import StoreIdentity
from common.training.recorder import read_metrics
from common.training.run_lock import LOCK_FILE, locked
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.comparison import cluster
from stage2_train_student.comparison import sweep as sweep_module
from stage2_train_student.comparison.planned_runs import plan_runs
from stage2_train_student.training.runs import read_finished
from tests.shared.reduced import (
    DATASET,
    STREET_GRID,
    command,
    experiment_file,
    experiment_overrides,
    fail,
    saved,
    settings_words,
    start,
    succeed,
    train,
)
from tests.shared.resumed_runs import assert_same_run, differing

QUICK = ("batch_size=1", "epochs=1", "validate_on=[]", "loading_threads=1", "student.width=4")
NAMES = f"{experiment_file('baseline')} {experiment_file('vpd')}"


def sweep_words(data: Path, cache: Path, out: Path, *overrides: str, experiments: str = NAMES, **options: object):
    """Words of the sweep command on made-up streets, one computing thread each."""
    words = ["sweep", "--data", data, "--cache", cache, "--out", out, "--experiments", experiments]
    words += ["--device", "cpu", "--threads", 1]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    return [str(word) for word in words] + settings_words(*experiment_overrides(STREET_GRID), *QUICK, *overrides)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, streets, street_cache):
    """Two experiments with two seeds, two steps each, and what the command said."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    done = command(stage_two, *sweep_words(streets, street_cache, out, "steps=2", seeds="0-1", jobs=2))
    succeed(done)
    yield out, done.stdout
    shutil.rmtree(out)


@pytest.fixture
def nothing_may_start(monkeypatch):
    """Fail the test when a run is started."""
    monkeypatch.setattr(sweep_module, "start", lambda run, *_: pytest.fail(f"{run.name} was started"))


def test_every_experiment_runs_with_every_seed_as_train_would_run_it(swept, streets, street_cache, runs):
    out, output = swept
    names = [f"{experiment}/seed{seed}" for seed in (0, 1) for experiment in ("baseline", "vpd")]
    lines = [line.split() for line in output.splitlines() if "finished after 2 steps" in line]
    assert [line[0] for line in lines] == names
    assert [line[-1] for line in lines] == [str(out / name) for name in names]
    states = [saved(out / name) for name in names]
    assert [state["settings"]["seed"] for state in states] == [0, 0, 1, 1]
    assert all(differing(one["student"], states[0]["student"]) for one in states[1:])
    for name in names:
        assert "2 steps, 0 epochs finished" in (out / name / "train.log").read_text()
    succeed(train(streets, street_cache, runs / "alone", *QUICK, "steps=2", "seed=1", name="vpd"))
    assert_same_run(out / "vpd/seed1", runs / "alone")


def test_the_same_command_again_starts_nothing(swept, streets, street_cache, nothing_may_start):
    words = sweep_words(streets, street_cache, swept[0], "steps=2", seeds="0 1")
    assert succeed(command(stage_two, *words)).count("finished after 2 steps") == 4
    # The number of threads that load makes no other student.
    assert "finished" in succeed(command(stage_two, *words, "--set", "loading_threads=2"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("steps=2", "seeds"), "--set seed=... contradicts --seeds"),
        (("steps=2", "optimiser.learning_rate=1e-2"), "4 of 4 run folders hold other runs; nothing was started"),
        (("steps=1",), "trained for 0 epochs and 2 steps, longer than the 1 epoch and at most 1 step asked for now"),
    ],
)
def test_other_runs_in_the_folders_are_refused(swept, streets, street_cache, nothing_may_start, changes, words):
    changes = tuple(change.replace("seeds", "seed=3") for change in changes)
    assert words in fail(command(stage_two, *sweep_words(streets, street_cache, swept[0], *changes, seeds="0 1")))


def test_finished_runs_of_another_cache_are_refused(swept, streets, street_cache, tmp_path, nothing_may_start):
    shutil.copytree(street_cache, tmp_path / "other")
    manifest = tmp_path / "other/manifest.json"
    content = json.loads(manifest.read_text())
    identity = StoreIdentity.model_validate(content["identity"]).model_copy(update={"teacher_hash": "b" * 64})
    changed = {"identity": identity.model_dump(mode="json"), "identity_hash": identity.hash}
    manifest.write_text(json.dumps(content | changed))
    message = fail(command(stage_two, *sweep_words(streets, tmp_path / "other", swept[0], "steps=2")))
    assert "1 of 2 run folders hold other runs" in message  # the baseline reads no cache
    assert str(swept[0] / "vpd/seed0") in message
    assert "targets of another store or teacher" in message


def test_finished_runs_on_other_scans_are_refused(swept, streets, street_cache, tmp_path, nothing_may_start):
    fewer = Path(shutil.copytree(streets, tmp_path / "fewer"))
    scan_path(fewer, ScanId("00", "000004")).unlink()
    message = fail(command(stage_two, *sweep_words(fewer, street_cache, swept[0], "steps=2")))
    assert "2 of 2 run folders hold other runs" in message
    assert "trained on 5 scans" in message


def test_ctrl_c_stops_a_run_with_its_state_and_the_command_goes_on_bit_for_bit(streets, street_cache, runs):
    out, vpd = runs / "sweep", experiment_file("vpd")
    words = sweep_words(streets, street_cache, out, "epochs=100", experiments=vpd, seeds="0 1")
    process = start("-m", "stage2_train_student", *words)
    folder = out / "vpd/seed0"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and read_metrics(folder, "train"):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert re.search(r"vpd/seed1 +not started", output)
    assert not (out / "vpd/seed1").exists()
    assert read_finished(folder) is None
    reached = saved(folder)["progress"]["step"]
    assert read_metrics(folder, "train")[-1]["step"] == reached

    longer = ("epochs=100", f"steps={reached + 2}")
    output = succeed(command(stage_two, *sweep_words(streets, street_cache, out, *longer, experiments=vpd)))
    assert f"finished after {reached + 2} steps" in output
    assert f"resuming {folder} after step {reached}" in (folder / "train.log").read_text()
    succeed(train(streets, street_cache, runs / "straight", *QUICK, *longer, name="vpd"))
    assert_same_run(folder, runs / "straight")


def test_a_run_does_not_outlive_a_sweep_that_is_killed(streets, street_cache, runs):
    """It saves its state, gives its folder back, and the same command goes on bit for bit."""
    out, vpd = runs / "sweep", experiment_file("vpd")
    process = start(
        "-m", "stage2_train_student", *sweep_words(streets, street_cache, out, "epochs=100", experiments=vpd)
    )
    folder = out / "vpd/seed0"
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and read_metrics(folder, "train")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    while (folder / LOCK_FILE).read_text():
        assert time.monotonic() < deadline, "the run goes on without its sweep"
        time.sleep(0.02)
    with locked(folder):
        reached = saved(folder)["progress"]["step"]
    assert read_metrics(folder, "train")[-1]["step"] == reached
    assert f"process {process.pid}, which started this one, has ended" in (folder / "train.log").read_text()

    longer = ("epochs=100", f"steps={reached + 2}")
    succeed(command(stage_two, *sweep_words(streets, street_cache, out, *longer, experiments=vpd)))
    succeed(train(streets, street_cache, runs / "straight", *QUICK, *longer, name="vpd"))
    assert_same_run(folder, runs / "straight")


def test_runs_that_fail_are_named_with_their_logs_and_the_others_go_on(streets, street_cache, runs, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"extends: {experiment_file('baseline')}\ntrain: ['05']\n")
    folder, log = runs / "sweep/baseline/seed0", runs / "sweep/broken/seed0/train.log"
    folder.mkdir(parents=True)
    names = f"{experiment_file('baseline')} {broken}"
    words = sweep_words(streets, street_cache, runs / "sweep", experiments=names)
    with locked(folder):
        message = fail(command(stage_two, *words))
    assert "2 of 2 runs failed" in message
    assert f"baseline/seed0: {folder}: in use by process {os.getpid()} on " in message
    assert (folder / "train.log").read_text() == ""
    assert not (folder / "metrics.jsonl").exists()
    assert "broken/seed0: exit status 1:" in message
    assert str(log) in message
    assert re.search(r"sequence.* 05", log.read_text())


@pytest.mark.parametrize("patience", ["", "trap '' TERM; "])
def test_no_run_outlives_its_sweep(tmp_path, monkeypatch, patience):
    """Whether it ends when told to, or would not."""
    monkeypatch.setattr(sweep_module, "SECONDS_TO_STOP", 0.3)
    [run] = plan_runs([str(experiment_file("baseline"))], [0], tmp_path, [f"dataset={DATASET}"])
    process = subprocess.Popen(
        ["sh", "-c", f"{patience}echo ready; while :; do sleep 0.01; done"], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"

    def sweep_that_ends_at_once():
        with sweep_module.terminating_children() as children:
            children[process] = run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_that_ends_at_once()
    process.stdout.close()
    assert process.returncode == (-signal.SIGKILL if patience else -signal.SIGTERM)


def test_a_lost_run_is_waited_for_without_asking_all_the_time(tmp_path, monkeypatch):
    [run] = plan_runs([str(experiment_file("baseline"))], [0], tmp_path / "runs", [f"dataset={DATASET}"])
    (tmp_path / "runs").write_text("no folder")
    asked = []
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "locked", lambda folder: asked.append(folder) or locked(folder))
    monkeypatch.setattr(cluster, "train_all", lambda *_: [])
    assert cluster.train_here(run, [], 1, Path.cwd(), 0.5) == []
    assert 1 <= len(asked) <= 5


def test_a_run_that_goes_on_is_finished_only_at_its_new_end(streets, street_cache, runs):
    run, options = runs / "run", {"name": "baseline", "options": ("--resume",)}
    succeed(train(streets, street_cache, run, *QUICK, "steps=2", name="baseline"))
    first = read_finished(run)
    assert (first.step, first.epoch, first.best_miou) == (2, 0, -1.0)
    succeed(train(streets, street_cache, run, *QUICK, "steps=3", **options))
    assert read_finished(run).step == 3
    succeed(train(streets, street_cache, run, *QUICK, **options))
    assert (read_finished(run).step, read_finished(run).epoch) == (5, 1)


@pytest.mark.parametrize(
    ("experiments", "seeds", "words"),
    [
        ("baseline nosuch", "0", "no experiment 'nosuch'"),
        ("baseline", "0 x", "'x' is neither a number nor a span"),
        ("baseline", "-1", "'-1' is neither a number nor a span"),
        ("baseline", "3-1", "ends before it begins"),
        ("baseline", " ", "names no seed"),
        (" ", "0", "names no experiment"),
    ],
)
def test_what_names_no_runs_is_refused(streets, street_cache, tmp_path, experiments, seeds, words):
    options = sweep_words(streets, street_cache, tmp_path, experiments=experiments, seeds=seeds)
    assert words in fail(command(stage_two, *options))


def test_two_experiments_of_one_name_are_refused(streets, street_cache, tmp_path):
    shutil.copy(experiment_file("baseline"), tmp_path / "baseline.yaml")
    names = f"baseline {tmp_path / 'baseline.yaml'}"
    assert "have the same name" in fail(
        command(stage_two, *sweep_words(streets, street_cache, tmp_path, experiments=names))
    )


def test_emptied_settings_of_one_run_are_written_again_and_stop_no_other(swept, streets, street_cache, runs):
    shutil.copytree(swept[0], runs)
    baseline = experiment_file("baseline").stem
    damaged, whole = runs / baseline / "seed0", runs / baseline / "seed1"
    before, student = (damaged / "settings.yaml").read_bytes(), (damaged / "student_last.pt").read_bytes()
    (damaged / "settings.yaml").write_bytes(b"")
    stamp = (whole / "settings.yaml").stat().st_mtime_ns
    assert f"{damaged / 'settings.yaml'}: the file is empty" in fail(command(stage_two, "compare", runs))

    done = succeed(command(stage_two, *sweep_words(streets, street_cache, runs, "steps=2", seeds="0-1", jobs=2)))
    assert f"{damaged / 'settings.yaml'}: the file is empty" in done
    assert (damaged / "settings.yaml").read_bytes() == before
    assert (damaged / "student_last.pt").read_bytes() == student
    assert (whole / "settings.yaml").stat().st_mtime_ns == stamp
