"""Makes what the answers are read from: scans, caches, students and scores; what is there already is left alone."""

import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from common.base.environment import processors
from common.base.errors import TrainingError
from stage1_dump_teacher.teacher_training.train import LAST_TEACHER
from stage2_train_student.comparison.planned_runs import PlannedRun, refuse_other_runs
from stage2_train_student.comparison.sweep import train_all
from stage2_train_student.comparison.sweep_command import report
from stage2_train_student.demo import newer, words
from stage2_train_student.evaluation.evaluation_file import EVALUATION_FILE
from stage2_train_student.training.runs import FINISHED_FILE
from tests.benchmarks.proof.plan import Folders, Plan, changing, runs_of_choice, runs_of_question

TEACHER_FILE = "teacher.json"
LOGS = "logs"


def make_everything(plan: Plan, folders: Folders, jobs: int) -> None:
    """All that the plan asks for, question by question; stopped at any time, the next call goes on.

    Raises:
        TrainingError: a command failed; says where its output is.
    """
    make_scans_and_caches(plan, folders, plan.caches, jobs)
    first = next(iter(plan.students.values())).config
    theirs = folders.runs / TEACHER_FILE
    if not theirs.is_file():
        score = words(
            "evaluate", data=folders.data, teacher=plan.teacher, experiment=first, split=plan.split, json=theirs
        )
        run_commands({"score the teacher": score}, folders.runs, 1)
    click.secho("\nchoose the settings", bold=True)
    make_runs(folders, runs_of_choice(plan, folders), plan.choice.split, jobs)
    make_students(plan, folders, plan.questions, jobs)


def make_what_is_asked(plan: Plan, folders: Folders, questions: Iterable[str], jobs: int) -> None:
    """What some questions need.

    Raises:
        TrainingError: a command failed; says where its output is.
    """
    names = dict.fromkeys(name for question in questions for name in plan.questions[question].students())
    caches = dict.fromkeys(cache for name in names if (cache := plan.students[name].cache))
    make_scans_and_caches(plan, folders, caches, jobs)
    make_students(plan, folders, questions, jobs)


def make_students(plan: Plan, folders: Folders, questions: Iterable[str], jobs: int) -> None:
    """Students and scores of some questions, whose caches are there."""
    for name in questions:
        question = plan.questions[name]
        click.secho(f"\n{name}: {question.asked}", bold=True)
        make_runs(folders, runs_of_question(plan, folders, question), plan.split, jobs)


def make_scans_and_caches(plan: Plan, folders: Folders, caches: Collection[str], jobs: int) -> None:
    """The streets, and some caches with the teachers that they need."""
    simulate = words("simulate", out=folders.data, config=plan.streets, jobs=jobs)
    run_commands({"simulate": simulate}, folders.runs, 1)
    needed = sorted({name for cache in caches for name in plan.caches[cache].teachers})
    run_commands({f"train {name}": train_teacher_command(plan, folders, name) for name in needed}, folders.runs, jobs)
    run_commands({f"dump {name}": dump_command(plan, folders, name) for name in caches}, folders.runs, jobs)


def make_runs(folders: Folders, runs: Sequence[PlannedRun], split: str, jobs: int) -> None:
    """Students and scores of some runs, whose caches are there."""
    needed = {run.words[run.words.index("--cache") + 1] for run in runs if "--cache" in run.words}
    for cache in sorted(needed):
        refuse_other_runs([run for run in runs if cache in run.words], cache, folders.data)
    report(list(runs), train_all(runs, ["--data", str(folders.data)], jobs, max(1, processors() // jobs)))
    unscored = [run for run in runs if not newer(run.folder / EVALUATION_FILE, run.folder / FINISHED_FILE)]
    scores = {
        f"score {run.name}": words("evaluate", data=folders.data, run=run.folder, split=split) for run in unscored
    }
    run_commands(scores, folders.runs, jobs)


def dump_command(plan: Plan, folders: Folders, name: str) -> list[str]:
    """The command that makes a cache."""
    cache = plan.caches[name]
    options: dict[str, Any] = {"data": folders.data, "teacher": plan.teacher, "cache": folders.caches / name}
    others = [
        word for name in cache.teachers for word in ("--teacher", str(teacher_folder(folders, name) / LAST_TEACHER))
    ]
    return [*words("dump", **options, config=cache.config), *others, *changing(cache.set)]


def train_teacher_command(plan: Plan, folders: Folders, name: str) -> list[str]:
    """The command that trains a teacher; done again it does nothing."""
    teacher, folder = plan.teachers[name], teacher_folder(folders, name)
    command = words("train-teacher", "--resume", data=folders.data, run=folder, config=teacher.config)
    return [*command, *changing(teacher.set)]


def teacher_folder(folders: Folders, name: str) -> Path:
    """Where a teacher is trained."""
    return folders.runs / "teachers" / name


def run_commands(commands: dict[str, list[str]], runs: Path, jobs: int) -> None:
    """Run commands of `polar-distill`, some at a time, each with a log of its own under the folder of runs.

    Raises:
        TrainingError: one failed; those that had not begun are not started.
    """
    logs = runs / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(commands), unit="command", disable=not commands) as bar:
        waiting = {
            pool.submit(run_command, command, logs / f"{title.replace(' ', '_').replace('/', '_')}.log", jobs): title
            for title, command in commands.items()
        }
        try:
            for future in as_completed(waiting):
                future.result()
                bar.set_description(waiting[future])
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_command(command: list[str], log: Path, jobs: int) -> None:
    """Run one command of `polar-distill` with its share of the cores.

    Raises:
        TrainingError: it failed.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, processors() // jobs))}
    with log.open("wb") as file:
        code = subprocess.run(
            [sys.executable, "-m", "polar_distill", *command], stdout=file, stderr=file, env=os.environ | threads
        ).returncode
    if code:
        raise TrainingError(
            f"polar-distill {shlex.join(command)} failed (exit status {code}); its output is in {log}. "
            "Solve this, then run the same command: it goes on from there."
        )
