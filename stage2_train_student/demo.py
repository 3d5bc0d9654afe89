"""The whole idea in one command, at a size for two cores: the project's own commands, one after another.

Every step is a process of its own and is printed before it runs, so that a reader can type it again. Steps whose
results are there already take seconds.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from common.base.config_files import find_config
from common.base.errors import TrainingError
from common.base.files import write_json
from common.base.text import command_line
from common.scans.label_map import load_label_map
from stage2_train_student.comparison.experiments import group_runs
from stage2_train_student.comparison.results import results
from stage2_train_student.comparison.training_runs import find_runs, read_run
from stage2_train_student.comparison.verdict import verdict
from stage2_train_student.evaluation.evaluation_file import EVALUATION_FILE, read_report
from stage2_train_student.training.runs import FINISHED_FILE

CONFIGS = Path("configs/demo")
TEACHER = CONFIGS / "teacher.safetensors"
EXPERIMENTS = ("baseline", "full")
SEEDS = (0, 1, 2)
"""Of each experiment: one run of each could not be told from chance."""

TEACHER_EVALUATION = "teacher.json"
SUMMARY = "summary.json"
PAGE = "comparison.html"
VIEW = "view.html"
SPLIT = "test"
"""Streets that no model trained on."""

SCAN = "11/000000"
"""Of them, shown in 3D."""


class DemoFolders(NamedTuple):
    """Where the demo puts simulated scans, the teacher's targets, and students with their evaluations and page."""

    data: Path = Path("data/demo")
    cache: Path = Path("cache/demo")
    runs: Path = Path("runs/demo")


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=2, help="Processes that work at a time.")
def demo(jobs: int) -> None:
    """Simulate streets, dump a small teacher's targets once, train students with and without them, compare them.

    All students know the labels of one scan; the distilled ones also what the teacher says of 400.

    Needs no dataset, checkpoint or GPU. Takes some minutes on two cores; a second time seconds.
    """
    folders = DemoFolders()
    _, cache, runs = folders
    numbers = run(folders, jobs)
    baseline, full, gain, teacher = (numbers[f"{name}_miou"] for name in ("baseline", "full", "gain", "teacher"))
    click.echo(
        f"\nDoes distilling help? {numbers['verdict']}\n"
        "The students know the labels of one scan; `full` learns from a cache of what the teacher says of 400 too.\n"
        f"mIoU on streets that no model trained on, mean of {len(SEEDS)} students each: baseline {baseline:.1f}, "
        f"full {full:.1f} ({gain:+.1f} points), teacher {teacher:.1f}. {numbers['demo_s']:.0f} s.\n"
        f"  page      {runs / PAGE}   open it in a browser\n"
        f"  3D view   {runs / VIEW}   one scan: truth, student, teacher, errors\n"
        f"  numbers   {runs / SUMMARY}, {(runs / PAGE).with_suffix('.md')}, .csv\n"
        f"  students  {', '.join(str(runs / name) for name in EXPERIMENTS)}\n"
        f"  targets   {cache}   ({command_line('info', '--cache', cache)})\n"
        f"  scans     {folders.data}\n"
        "next, with your own data (README.md):\n"
        "  polar-distill doctor --data DATA --teacher TEACHER      is everything usable?\n"
        "  polar-distill dump --data DATA --teacher TEACHER --set profile=train    the teacher, once\n"
        '  polar-distill sweep --data DATA --experiments "baseline full" --seeds 0-2    students, as many as you like'
    )


def run(folders: DemoFolders, jobs: int, configs: Path = CONFIGS, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """All steps, and the summary, which is also written to the folder of runs."""
    started = time.monotonic()
    for number, (title, command) in enumerate(steps(folders, jobs, configs, seeds), start=1):
        click.secho(f"\n{number}. {title}", bold=True)
        run_command(command, f"step {number}")
    numbers = summary(folders.runs, time.monotonic() - started)
    write_json(folders.runs / SUMMARY, numbers)
    return numbers


def steps(folders: DemoFolders, jobs: int, configs: Path, seeds: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """What each step does, and what follows `polar-distill`; late steps look at what the earlier ones left."""
    data, cache, runs = folders
    teacher = find_config(TEACHER) or TEACHER
    files = " ".join(str(configs / f"{name}.yaml") for name in EXPERIMENTS)
    title = "simulate streets that a LiDAR drives through"
    yield title, words("simulate", out=data, config=configs / "streets.yaml", jobs=jobs)
    title = "stage one: run the teacher once over the training scans"
    yield title, words("dump", data=data, teacher=teacher, cache=cache, config=configs / "dump.yaml")
    title = "stage two: train students, some without the teacher, the others from the one cache"
    chosen = " ".join(map(str, seeds))
    yield title, words("sweep", data=data, cache=cache, experiments=files, seeds=chosen, out=runs, jobs=jobs)
    theirs, first = runs / TEACHER_EVALUATION, configs / f"{EXPERIMENTS[0]}.yaml"
    if not newer(theirs, teacher):
        title = "mIoU of the teacher on streets that no model trained on"
        yield title, words("evaluate", data=data, teacher=teacher, experiment=first, split=SPLIT, json=theirs)
    for folder in [runs / name / f"seed{seed}" for seed in seeds for name in EXPERIMENTS]:
        if not newer(folder / EVALUATION_FILE, folder / FINISHED_FILE):
            title = f"mIoU of the student in {folder} there, and how often it agrees with the teacher"
            yield title, words("evaluate", data=data, run=folder, split=SPLIT, agreement=teacher)
    page = {"out": runs / PAGE, "data": data, "teacher": teacher, "teacher-evaluation": theirs}
    yield "the page", words("compare", *(runs / name for name in EXPERIMENTS), **page)
    shown = words("view", runs / "full" / f"seed{seeds[0]}", SCAN, data=data, teacher=teacher, out=runs / VIEW)
    yield "one scan in 3D, as the student and the teacher see it", shown


def words(*names: Any, **options: Any) -> list[str]:
    """Words of a command: names, then `--option value` pairs."""
    pairs = (part for name, value in options.items() for part in (f"--{name}", value))
    return [str(word) for word in (*names, *pairs)]


def run_command(command: list[str], step: str) -> None:
    """Print and run what follows `polar-distill`, as a step of the demo.

    Raises:
        TrainingError: it failed; what it said stands above.
    """
    click.echo(f"$ {command_line(*command)}")
    code = subprocess.run([sys.executable, "-m", "polar_distill", *command], check=False).returncode
    if code:
        raise TrainingError(
            f"the demo stopped at {step} (exit status {code}, see above). Solve this, then run the same command: it "
            "goes on from there. What an older version of the demo left (data/demo, cache/demo, runs/demo) can be "
            "removed."
        )


def newer(path: Path, other: Path) -> bool:
    """Whether a file is there and was written after another."""
    return path.is_file() and path.stat().st_mtime >= other.stat().st_mtime


def summary(runs: Path, seconds: float) -> dict[str, Any]:
    """What the demo found, mIoU in points of 100: means over the seeds, and the verdict that `compare` prints."""
    experiments = group_runs([read_run(folder) for folder in find_runs([runs / name for name in EXPERIMENTS])])
    baseline = next(experiment for experiment in experiments if experiment.name == EXPERIMENTS[0])
    found = results(experiments, baseline, "evaluation", load_label_map(baseline.settings.dataset))
    miou = {one.experiment.name: [100 * value for value in one.miou.values] for one in found}
    gain = next(one.gain for one in found if one.experiment.name == "full")
    answer = verdict(found)
    means = {name: sum(values) / len(values) for name, values in miou.items()}
    return {
        "baseline_miou": means["baseline"],
        "full_miou": means["full"],
        "gain_miou": means["full"] - means["baseline"],
        "p_value": gain.p_value if gain else None,
        "verdict": answer.sentence if answer else "",
        "demo_s": seconds,
        "teacher_miou": 100 * read_report(runs / TEACHER_EVALUATION)["miou"],
        "miou": miou,
    }
