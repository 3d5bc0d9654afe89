"""The command that trains many experiments with several seeds from one cache."""

from pathlib import Path

import click

from common.base.cluster import ray_option
from common.base.command_options import cache_option, data_option, device_option, path_type, set_option
from common.base.environment import processors
from common.base.errors import SettingsError, TrainingError
from common.base.signals import INTERRUPTED
from common.base.text import count_text
from stage2_train_student.command_options import online_teacher_option
from stage2_train_student.comparison.cluster import train_on_cluster
from stage2_train_student.comparison.planned_runs import PlannedRun, plan_runs, refuse_other_runs
from stage2_train_student.comparison.sweep import LOG_FILE, Outcome, train_all
from stage2_train_student.training.runs import read_finished


@click.command()
@data_option
@click.option(
    "--experiments",
    multiple=True,
    required=True,
    metavar="NAMES",
    help="Names of files in configs/experiments/, or paths, with spaces between them; repeatable.",
)
@click.option("--seeds", default="0", help='Such as "0 1 2" or 0-2.')
@cache_option
@online_teacher_option
@click.option(
    "--out", type=path_type, default=Path("runs/sweep"), help="Folder that gets EXPERIMENT/seedN of each run."
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Runs trained at a time.")
@click.option("--threads", type=click.IntRange(min=1), help="Computing threads of each run.  [default: cores / jobs]")
@ray_option
@device_option
@set_option
def sweep(
    data: Path,
    experiments: tuple[str, ...],
    seeds: str,
    cache: str,
    teacher: Path | None,
    out: Path,
    jobs: int,
    threads: int | None,
    address: str | None,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train several experiments with several seeds from one cache.

    The same command again goes on where it was stopped and trains only what is missing. Every run is what `train` makes
    of the same settings, and writes its output to train.log in its folder. On a CPU an interrupted run ends bit for bit
    as if it had not been interrupted if --threads is the same (with --jobs unchanged it is). With --ray, as many runs
    are trained at a time as the cluster has GPUs, or parts of --threads cores (at most 4 by default), free.

    \b
    Examples:
      polar-distill sweep --data dataset --experiments "baseline full" --seeds 0-2
      polar-distill sweep --data dataset --experiments full --seeds "0 1" --jobs 2 --set epochs=10
      polar-distill sweep --data dataset --experiments "baseline full" --seeds 0-9 --ray auto
    """
    names = [name for text in experiments for name in text.split()]
    runs = plan_runs(names, parse_seeds(seeds), out, overrides)
    if not runs:
        raise SettingsError("--experiments names no experiment")
    refuse_other_runs(runs, cache, data)
    common = ["--data", str(data), "--cache", cache]
    common += [] if teacher is None else ["--teacher", str(teacher)]
    if address is None:
        outcomes = train_all(runs, [*common, "--device", device], jobs, threads or max(1, processors() // jobs))
    else:
        outcomes = train_on_cluster(runs, common, address, device, threads)
    report(runs, outcomes)


def parse_seeds(text: str) -> list[int]:
    """Seeds such as "0 1 2" or "0-2", or both.

    Raises:
        SettingsError: it is neither.
    """
    seeds: list[int] = []
    for word in text.replace(",", " ").split():
        first, dash, last = word.partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise SettingsError(f"--seeds: '{word}' is neither a number nor a span such as 0-2")
        span = range(int(first), int(last if dash else first) + 1)
        if not span:
            raise SettingsError(f"--seeds: '{word}' ends before it begins")
        seeds += span
    if not seeds:
        raise SettingsError("--seeds names no seed")
    return seeds


def report(runs: list[PlannedRun], outcomes: list[Outcome]) -> None:
    """Say how each run ended.

    Raises:
        TrainingError: some failed; names them and their logs.
        click.exceptions.Exit: some were stopped.
    """
    by_folder = {outcome.run.folder: outcome for outcome in outcomes}
    width = max(len(run.name) for run in runs)
    for run in runs:
        outcome = by_folder.get(run.folder)
        click.echo(f"{run.name:{width}}  {describe(outcome) if outcome else 'not started'}  {run.folder}")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        lines = "\n".join(f"  {run.name}: {reason}\n    {run.folder / LOG_FILE}" for run, _, reason in failed)
        raise TrainingError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again.\n{lines}")
    if any(outcome.status == "stopped" for outcome in outcomes) or len(outcomes) < len(runs):
        click.echo("stopped; the same command goes on", err=True)
        raise click.exceptions.Exit(INTERRUPTED)


def describe(outcome: Outcome) -> str:
    """A run's end in a few words."""
    finished = read_finished(outcome.run.folder) if outcome.status == "finished" else None
    if finished is None:
        return outcome.status
    best = f", best mIoU {100 * finished.best_miou:.2f}" if finished.best_miou >= 0 else ""
    return f"finished after {count_text(finished.step, 'step')}{best}"
