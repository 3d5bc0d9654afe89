"""Which runs a sweep is to train, and whether what lies in their folders is theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.base.config import load_settings
from common.base.errors import CheckpointError, PolarDistillError, SettingsError, TrainingError
from common.base.text import count_text
from common.targets.store import TargetStore
from common.training.recorder import SETTINGS_FILE
from common.training.resuming import check_same_settings
from common.training.state import check_same_targets
from stage2_train_student.command_options import experiment_file
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import FinishedRun, read_finished, run_settings
from stage2_train_student.training.seen_data import ScansOfNow
from stage2_train_student.training.state import may_change


class PlannedRun(NamedTuple):
    """One experiment with one seed, such as full/seed0; `words` are the options of the train command that say so."""

    name: str
    folder: Path
    settings: ExperimentSettings
    words: list[str]


def plan_runs(
    experiments: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[PlannedRun]:
    """All experiments, by name or path, with the first seed, then all with the next; `out`/EXPERIMENT/seedN of each.

    Raises:
        SettingsError: an experiment is unknown, two share a name, or the overrides set the seed.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise SettingsError("--set seed=... contradicts --seeds; name the seeds there")
    files = list(dict.fromkeys(experiment_file(experiment) for experiment in experiments))
    if len({file.stem for file in files}) < len(files):
        raise SettingsError(
            f"two experiments have the same name: {', '.join(map(str, files))}; rename one of the files"
        )
    runs = []
    for seed in dict.fromkeys(seeds):
        for file in files:
            changes = (*overrides, f"seed={seed}")
            folder = out / file.stem / f"seed{seed}"
            words = ["--experiment", str(file), "--run", str(folder)]
            words += [word for change in changes for word in ("--set", change)]
            settings = load_settings(ExperimentSettings, file, changes)
            runs.append(PlannedRun(f"{file.stem}/seed{seed}", folder, settings, words))
    return runs


def refuse_other_runs(runs: Sequence[PlannedRun], cache: str, data: Path) -> None:
    """Make sure that folders of runs which have begun hold these runs.

    Raises:
        TrainingError: lists those that are others: of other settings, cache or scans, or trained longer.
    """
    scans, problems, targets_hash = ScansOfNow(data), [], ""
    for run in runs:
        if not (run.folder / SETTINGS_FILE).is_file():
            continue
        try:
            check_own_settings(run)
            finished = read_finished(run.folder)
            if finished is None:
                continue
            if run.settings.targets == "cache":
                targets_hash = targets_hash or TargetStore.open(cache).identity.hash
                check_same_targets(run.folder, finished.targets_hash, targets_hash)
            refuse_longer(run, finished)
            scans.check(run.folder, run.settings)
        except PolarDistillError as error:
            problems.append(error.message)
    if problems:
        lines = "\n".join(problems)
        raise TrainingError(
            f"{len(problems)} of {len(runs)} run folders hold other runs; nothing was started.\n{lines}"
        )


def check_own_settings(run: PlannedRun) -> None:
    """Hold the settings in a run's folder against those asked for; damaged ones are left to its training state.

    Raises:
        CheckpointError: lists each setting that differs.
    """
    try:
        stored = run_settings(run.folder).model_dump(mode="json")
    except SettingsError as error:
        tqdm.write(f"note: {error.message.splitlines()[0]} {run.name} goes on from its training state, if that fits.")
        return
    check_same_settings(run.folder, stored, run.settings.model_dump(mode="json"), may_change(run.settings))


def refuse_longer(run: PlannedRun, finished: FinishedRun) -> None:
    """Make sure that a finished run has not trained beyond what is asked for now.

    Raises:
        TrainingError: it has.
    """
    epochs, steps = run.settings.epochs, run.settings.steps
    if finished.epoch > epochs or (steps is not None and finished.step > steps):
        asked = count_text(epochs, "epoch") + ("" if steps is None else f" and at most {count_text(steps, 'step')}")
        raise TrainingError(
            f"{run.folder}: trained for {count_text(finished.epoch, 'epoch')} and {count_text(finished.step, 'step')}, "
            f"longer than the {asked} asked for now. Choose another --out folder."
        )


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has ended as its settings ask; not one whose settings must be written again."""
    try:
        run_settings(run.folder)
    except (CheckpointError, SettingsError):
        return False
    finished = read_finished(run.folder)
    return finished is not None and finished.matches(run.settings)
