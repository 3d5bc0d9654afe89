"""The proof: does distillation from the cache beat the baseline, by how much, at what cost, and which views serve best?

    make proof                 (python -m tests.benchmarks.proof; about an hour on two cores, resumable)

Simulated streets, a teacher that was trained on the training streets only, students of every experiment in
`configs/proof` with three seeds each, scored on three streets that no model trained on. A run is scored by its last
student: these streets do not choose it. Settings were chosen by another street, but for the weights of vpd and lwd,
which were lowered once more after a look at one run on these. Writes `tests/benchmarks/results/proof.json` and
`docs/proof.png`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click

from common.base.files import write_atomically
from common.scans.label_map import load_label_map
from common.training.recorder import read_metrics
from stage2_train_student.comparison.experiments import Experiment, group_runs
from stage2_train_student.comparison.results import Result, results
from stage2_train_student.comparison.statistics import welch_error
from stage2_train_student.comparison.training_runs import find_runs, read_run
from stage2_train_student.demo import SPLIT, TEACHER, Step, newer, run_step, words
from stage2_train_student.evaluation.evaluation_file import EVALUATION_FILE, read_report
from stage2_train_student.training.finished_run import FINISHED_FILE

CONFIGS = Path("configs/proof")
STREETS = Path("configs/demo/streets.yaml")
DATA = Path("data/demo")
CACHES = {"replay": Path("cache/proof"), "anchors": Path("cache/proof_anchors")}
RUNS = Path("runs/proof")
RESULTS = Path("tests/benchmarks/results/proof.json")
PICTURE = Path("docs/proof.png")
TIMING = Path("runs/proof_timing")
TIMED_STEPS = 40
WARM_UP = 10
"""Steps of a timed run that do not count."""

TERMS = ("baseline", "vpd", "lwd", "logit", "full")
POLICIES = {"replay": "full", "anchors": "full_anchors", "online": "full_online"}
"""Experiment by the way in which its targets fit the augmented cloud; `online` is the reference."""


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time.")
@click.option("--seeds", default="0-2", show_default=True, help="Of the students.")
@click.option("--policy-seeds", default="0-1", show_default=True, help="Of those for other policies of views.")
def main(jobs: int, seeds: str, policy_seeds: str) -> None:
    """Dump, train, evaluate what is missing, then print the tables and write them down."""
    for number, step in enumerate(steps(jobs, seeds, policy_seeds), start=1):
        run_step(number, step)
    found = {result.experiment.name: result for result in measured()}
    numbers = proof(found)
    write_atomically(RESULTS, (json.dumps(numbers, indent=1) + "\n").encode())
    draw(numbers, PICTURE)
    click.echo("\n" + "\n".join(tables(numbers)))
    click.echo(f"\nwritten to {RESULTS} and {PICTURE}; all runs: {RUNS / 'comparison.html'}")


def steps(jobs: int, seeds: str, policy_seeds: str) -> Iterator[Step]:
    """All commands, in order; each group is planned when the ones before it have run, by what they left."""
    yield from dumps(jobs)
    yield from sweeps(jobs, seeds, policy_seeds)
    yield from evaluations()
    yield from timed_runs()


def dumps(jobs: int) -> list[Step]:
    """Scans, and a cache for each policy of views."""
    simulate = words("simulate", out=DATA, config=STREETS, jobs=jobs)
    return [Step("simulate", simulate)] + [
        Step(
            f"stage one for {name}",
            words(
                "dump",
                data=DATA,
                teacher=TEACHER,
                cache=cache,
                config=CONFIGS / f"dump_{name}.yaml",
            ),
        )
        for name, cache in CACHES.items()
    ]


def sweeps(jobs: int, seeds: str, policy_seeds: str) -> list[Step]:
    """All runs."""

    def sweep(title: str, names: tuple[str, ...], seeds: str, **options: Any) -> Step:
        files = " ".join(str(CONFIGS / f"{name}.yaml") for name in names)
        command = words("sweep", data=DATA, experiments=files, seeds=seeds, out=RUNS, jobs=jobs)
        return Step(title, command + words(**options))

    return [
        sweep("baseline, each term, all terms", TERMS, seeds, cache=CACHES["replay"]),
        sweep("all terms, targets shifted from anchors", (POLICIES["anchors"],), policy_seeds, cache=CACHES["anchors"]),
        sweep("all terms, the teacher in the loop", (POLICIES["online"],), policy_seeds, teacher=TEACHER),
    ]


def evaluations() -> list[Step]:
    """mIoU of the teacher and of every run that has not been scored since it finished, and the page."""
    theirs = RUNS / "teacher.json"
    missing = []
    if not theirs.is_file():
        first = CONFIGS / "baseline.yaml"
        command = words("evaluate", data=DATA, teacher=TEACHER, experiment=first, split=SPLIT, json=theirs)
        missing.append(Step("mIoU of the teacher", command))
    for folder in find_runs([RUNS]):
        if not newer(folder / EVALUATION_FILE, folder / FINISHED_FILE):
            command = words("evaluate", data=DATA, run=folder, split=SPLIT, agreement=TEACHER)
            missing.append(Step(f"mIoU of {folder}", command))
    page = {"out": RUNS / "comparison.html", "data": DATA, "teacher": TEACHER, "teacher-evaluation": theirs}
    return [*missing, Step("the page", words("compare", RUNS, baseline="baseline", **page))]


def timed_runs() -> list[Step]:
    """The same experiment from the cache and with the teacher in the loop, one after the other with nothing beside."""
    shutil.rmtree(TIMING, ignore_errors=True)
    sources = {"full": {"cache": CACHES["replay"]}, POLICIES["online"]: {"teacher": TEACHER}}
    return [
        Step(
            f"seconds of a step of {name}",
            words(
                *("train"),
                *("--set", f"steps={TIMED_STEPS}"),
                **{"data": DATA, "experiment": CONFIGS / f"{name}.yaml", "run": TIMING / name, **source},
            ),
        )
        for name, source in sources.items()
    ]


def seconds_per_step(name: str) -> float:
    """Median over the steps of a timed run."""
    steps = read_metrics(TIMING / name, "train")[WARM_UP:]
    return median(step["seconds"] for step in steps)


def measured() -> list[Result]:
    """Scores of all experiments of the proof."""
    experiments: list[Experiment] = group_runs([read_run(folder) for folder in find_runs([RUNS])])
    baseline = next(experiment for experiment in experiments if experiment.name == "baseline")
    label_map = load_label_map(baseline.settings.dataset)
    return results(experiments, baseline, "evaluation", label_map)


def row(result: Result, baseline: Result) -> dict[str, Any]:
    """One line of the table; mIoU in points of 100, and the difference to a baseline, with the p-value of the page."""
    values = [100 * value for value in result.miou.values]
    gain = None if result is baseline else result.gain
    error = None if gain is None else welch_error(result.miou, baseline.miou)
    return {
        "miou": 100 * (result.miou.mean or 0.0),
        "spread": None if result.miou.spread is None else 100 * result.miou.spread,
        "gain": None if gain is None else 100 * gain.value,
        "standard_error": None if error is None else 100 * error,
        "p_value": None if gain is None else gain.p_value,
        "agreement": result.agreement.mean,
        "by_seed": values,
    }


def proof(found: Mapping[str, Result]) -> dict[str, Any]:
    """The numbers of the proof."""
    baseline, full = found["baseline"], found["full"]
    seconds = {name: seconds_per_step(name) for name in ("full", POLICIES["online"])}
    gain = full.gain
    assert gain is not None, "the baseline has no score"
    error = welch_error(full.miou, baseline.miou) or 0.0
    return {
        "gain_miou": 100 * gain.value,
        "gain_over_two_se": gain.value / (2 * error) if error else None,
        "p_value": gain.p_value,
        "comparisons": gain.comparisons,
        "seeds": len(full.miou.values),
        "cost_ratio": seconds["full"] / seconds[POLICIES["online"]],
        "seconds_per_step": seconds,
        "teacher_miou": 100 * read_report(RUNS / "teacher.json")["miou"],
        "terms": {name: row(found[name], baseline) for name in TERMS},
        "views": {policy: row(found[name], baseline) for policy, name in POLICIES.items()},
    }


def tables(numbers: Mapping[str, Any]) -> list[str]:
    """The proof as Markdown."""

    def with_error(value: float | None, error: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{value:{sign}.1f}" + ("" if error is None else f" +- {error:.1f}")

    def line(name: str, values: Mapping[str, Any]) -> str:
        miou, gain = values["miou"], values["gain"]
        cells = [name, f"{with_error(miou, values['spread'])} ({len(values['by_seed'])})"]
        cells.append(with_error(gain, values["standard_error"], "+"))
        cells.append("" if values["p_value"] is None else f"{values['p_value']:.2f}")
        return f"| {' | '.join(cells)} |"

    head = "| {} | mIoU in %, +- standard deviation (seeds) | to the baseline, +- standard error | p |"
    lines = [head.format("student"), "| --- | --- | --- | --- |"]
    lines += [line(name, values) for name, values in numbers["terms"].items()]
    lines += [f"| teacher | {numbers['teacher_miou']:.1f} | | |", "", head.format("views of `full`")]
    lines += ["| --- | --- | --- | --- |", *(line(name, values) for name, values in numbers["views"].items())]
    ratio = numbers["cost_ratio"]
    return [
        *lines,
        "",
        f"The next experiment from the cache takes {ratio:.2f} of its time with the teacher in the loop.",
    ]


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """mIoU of every experiment and seed, beside the teacher's."""
    from matplotlib.figure import Figure

    views = {f"full, {policy}": values for policy, values in numbers["views"].items() if policy != "replay"}
    bars = {**numbers["terms"], **views}
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    colours = ["#8a8f98"] + ["#3b7dd8"] * 3 + ["#d9822b"] + ["#e7b98a"] * len(views)
    names = [name.replace("_", "\n").replace(", ", ",\n") for name in bars]
    axes.bar(names, [values["miou"] for values in bars.values()], color=colours, width=0.65)
    for position, values in enumerate(bars.values()):
        axes.plot([position] * len(values["by_seed"]), values["by_seed"], "k.", markersize=4)
    axes.axhline(numbers["teacher_miou"], color="#444444", linestyle="--", linewidth=1)
    axes.annotate("teacher", (len(bars) - 0.6, numbers["teacher_miou"]), va="bottom", ha="right", fontsize=9)
    axes.set_ylabel("mIoU in %")
    axes.set_title("Students on streets that no model trained on; a dot is a seed", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
