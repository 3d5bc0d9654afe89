"""What training and evaluation leave for a comparison, and the pictures that it draws with their students."""

import base64
import hashlib
import io
import json
import re
import resource
import shutil

import matplotlib.image
import numpy as np
import pytest
import torch

from common.base.memory import peak_memory
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.training.recorder import read_metrics
from stage2_train_student.__main__ import main
from stage2_train_student.comparison.training_runs import read_run
from stage2_train_student.evaluation.render import RIGHT, WRONG, class_colours, points_image
from stage2_train_student.training.runs import load_student
from tests.shared.by_hand import by_hand
from tests.shared.reduced import NARROW, STREET_GRID, command, fail, reduced_experiment, saved, succeed, train

CPU = torch.device("cpu")
SCAN = ScanId("08", "000000")
SHORT = ("batch_size=5", "student.dropblock=0.0", "loading_threads=1", "seed=1")
"""With this seed the students get some points right."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, streets, street_cache):
    """A baseline of two epochs that was interrupted once, and a distilled student of one."""
    root = tmp_path_factory.mktemp("trained")
    for options in ((), ("--resume",)):
        steps = "steps=null" if options else "steps=1"
        succeed(train(streets, None, root / "baseline", *SHORT, "epochs=2", steps, name="baseline", options=options))
    succeed(train(streets, street_cache, root / "full", *SHORT, "epochs=1"))
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def evaluated(trained, streets, reduced_teacher):
    """The same runs, evaluated with agreement."""
    for name in ("baseline", "full"):
        words = ["--data", streets, "--run", trained / name, "--agreement", reduced_teacher, "--device", "cpu"]
        assert "kept for compare in" in succeed(command(main, "evaluate", *words))
    return trained


def test_a_run_records_its_time_and_peak_memory_over_interruptions(trained):
    costs = read_metrics(trained / "baseline", "run")
    assert [(record["step"], record["epoch"]) for record in costs] == [(1, 1), (2, 2)]
    steps = read_metrics(trained / "baseline", "train")
    assert all(cost["seconds"] > step["seconds"] for cost, step in zip(costs, steps, strict=True))
    peaks = [record["peak_memory_bytes"] for record in costs]
    now, largest = peak_memory(CPU), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The kernel counts pages of each thread in batches, so that its two peaks differ a little.
    assert 1e8 < peaks[0] <= 1.02 * peaks[1] <= 1.04 * now <= 1.1 * largest, (peaks, now, largest)
    assert costs[0]["targets_hash"] is None
    [record] = read_metrics(trained / "full", "run")
    assert record["targets_hash"] == saved(trained / "full")["targets_hash"]
    assert all(read_run(trained / name).finished for name in ("baseline", "full"))


def test_an_evaluation_is_kept_with_what_it_is_about(evaluated, streets):
    folder = evaluated / "full"
    kept = json.loads((folder / "evaluation.json").read_text())
    report = json.loads((folder / "evaluation_val.json").read_text())
    assert kept["weights"] == "student_best.pt"
    assert kept["weights_sha256"] == hashlib.sha256((folder / "student_best.pt").read_bytes()).hexdigest()
    assert kept["scans_sha256"] == hashlib.sha256(b"08/000000").hexdigest()
    for name in ("splits", "scans", "views", "points", "miou", "iou", "ranges", "agreement"):
        assert kept[name] == report[name], name
    assert 0 < kept["agreement"]["share"] < 1
    run = read_run(folder)
    assert run.evaluated()["miou"] == pytest.approx(run.best_validation()["miou"])


def test_other_weights_leave_the_evaluation_of_the_run_alone(evaluated, streets, tmp_path):
    before = (evaluated / "full" / "evaluation.json").read_bytes()
    shutil.copy(evaluated / "baseline" / "student_last.pt", tmp_path / "other.pt")
    words = ["--run", evaluated / "full", "--weights", tmp_path / "other.pt", "--device", "cpu"]
    assert "kept for compare" not in succeed(command(main, "evaluate", "--data", streets, *words))
    assert (evaluated / "full" / "evaluation.json").read_bytes() == before


def test_pictures_show_what_the_students_predict(evaluated, streets, reduced_teacher, semantic_kitti, tmp_path):
    out = tmp_path / "comparison.html"
    words = ["--data", streets, "--teacher", reduced_teacher, "--radius", 30, "--device", "cpu"]
    output = succeed(command(main, "compare", evaluated, "--out", out, *words))
    assert str(out.with_suffix(".csv")) in output
    page = out.read_text()
    found = {
        alt: matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))
        for content, alt in re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)">', page)
    }
    who = ("baseline", "full", "teacher")
    expected = [f"prediction of {name} on scan {SCAN}" for name in who] + [
        f"errors of {name} on scan {SCAN}" for name in who
    ]
    assert set(found) == {f"ground truth of scan {SCAN}", *expected}

    source = Dataset.open(streets, semantic_kitti).read(SCAN)
    settings = reduced_experiment(STREET_GRID, NARROW)
    student, _ = load_student(settings, evaluated / "full" / "student_best.pt", CPU)
    prediction = np.array(by_hand(student, source.points, STREET_GRID))
    colours = class_colours(semantic_kitti)
    for title, labels in (("ground truth of", source.labels), ("prediction of full on", prediction)):
        drawn = points_image(source.points, colours[labels], 30.0, 480)
        assert (np.round(255 * found[f"{title} scan {SCAN}"][..., :3]) == drawn).all(), title
    errors = np.round(255 * found[f"errors of full on scan {SCAN}"][..., :3])
    shown = {tuple(colour) for colour in errors.reshape(-1, 3).astype(int).tolist()}
    assert {RIGHT, WRONG} <= shown
    share = (prediction == source.labels)[source.labels != 0].mean()
    assert f"{100 * share:.1f} % right" in page


def test_a_scan_without_labels_is_drawn_without_errors(evaluated, streets, tmp_path):
    out = tmp_path / "comparison.html"
    words = ["--data", streets, "--scan", "11/000000", "--device", "cpu"]
    succeed(command(main, "compare", evaluated / "full", "--out", out, *words))
    assert re.findall(r'alt="([^"]*)"', out.read_text()) == ["prediction of full on scan 11/000000"]


def test_pictures_need_to_know_where_the_scans_are(evaluated, streets):
    assert "--data" in fail(command(main, "compare", evaluated, "--scan", str(SCAN)))
    message = fail(command(main, "compare", evaluated, "--data", streets, "--scan", "08/123456", "--device", "cpu"))
    assert "123456" in message
    assert ".html" in fail(command(main, "compare", evaluated, "--out", "page.txt"))
