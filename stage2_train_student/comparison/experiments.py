"""Runs grouped into experiments, their names, and the settings in which they differ."""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.base.errors import SettingsError
from common.scans.label_map import LabelMap, load_label_map
from stage2_train_student.comparison.training_runs import TrainingRun
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import IGNORED_SETTINGS

SEED_IN_NAME = re.compile(r"[\s_.-]*seed[\s_=.-]*\d+", re.IGNORECASE)
NOT_SET = "not set"
BASELINE = "baseline"


@dataclass(frozen=True)
class Experiment:
    """Runs, by rising seed, that differ in their seed and in settings that change nothing about the student only."""

    name: str
    runs: tuple[TrainingRun, ...]

    @property
    def settings(self) -> ExperimentSettings:
        """Of all runs, but for the seed."""
        return self.runs[0].settings

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.settings.seed for run in self.runs]


def group_runs(runs: list[TrainingRun]) -> list[Experiment]:
    """Runs as experiments, in the order in which they were given.

    Runs belong together where all settings that matter but the seed, and what made their targets, are the same. A run
    that has not recorded yet what made its targets joins the others of its settings, where these agree.

    Raises:
        SettingsError: two runs have the same settings and the same seed.
    """
    keys = [json.dumps(comparable_settings(run.settings), sort_keys=True) for run in runs]
    groups: dict[tuple[str, str | None], list[TrainingRun]] = {}
    for run, key in zip(runs, keys, strict=True):
        alike = {one.targets_hash for one, other in zip(runs, keys, strict=True) if other == key} - {None}
        targets = alike.pop() if run.targets_hash is None and len(alike) == 1 else run.targets_hash
        groups.setdefault((key, targets), []).append(run)
    members = [sorted(group, key=lambda run: run.settings.seed) for group in groups.values()]
    for group in members:
        for one, other in pairwise(group):
            if one.settings.seed == other.settings.seed:
                raise SettingsError(
                    f"{one.folder} and {other.folder} are the same experiment with the same seed "
                    f"({one.settings.seed}), so they would count twice. Leave one of them out."
                )
    names = distinct_names([group[0].folder for group in members])
    return [Experiment(name, tuple(group)) for name, group in zip(names, members, strict=True)]


def comparable_settings(settings: ExperimentSettings) -> dict[str, Any]:
    """Settings that make an experiment; the dataset's file is left out, its content is compared on its own."""
    values = settings.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in {"seed", "dataset"} | IGNORED_SETTINGS}


def distinct_names(folders: list[Path]) -> list[str]:
    """A name for each experiment from one of its run folders: `runs/full/seed0` and `runs/full_seed0` are `full`.

    Names that two experiments share get as many of the folders above as tell them apart.
    """
    parts = [
        [part for part in (SEED_IN_NAME.sub("", name) for name in path.resolve().parts) if part] for path in folders
    ]
    names = []
    for folder, own in zip(folders, parts, strict=True):
        others = [other for other in parts if other is not own]
        depths = range(1, len(own) + 1)
        depth = next((depth for depth in depths if all(other[-depth:] != own[-depth:] for other in others)), None)
        # Runs of one folder whose settings differ, such as full_seed0 and full_seed1 of other epochs, go by the folder.
        names.append(str(folder) if depth is None else "/".join(own[-depth:]))
    return names


def one_label_map(experiments: list[Experiment]) -> LabelMap:
    """The dataset that all experiments are about.

    Raises:
        SettingsError: they are about several, or its file is gone.
    """
    first, *others = dict.fromkeys(run.settings.dataset for experiment in experiments for run in experiment.runs)
    label_map = load_label_map(first)
    for path in others:
        other = load_label_map(path)
        if other != label_map:
            raise SettingsError(
                f"{path} ('{other.name}') and {first} ('{label_map.name}') are different datasets, "
                "so mIoU of their students cannot be compared. Compare runs of one dataset."
            )
    return label_map


def choose_baseline(experiments: list[Experiment], name: str | None) -> Experiment | None:
    """The experiment that others are measured against: the one named, or the one without a teacher.

    Where several have no teacher it is the one called `baseline`. None where none has.

    Raises:
        SettingsError: no experiment has that name, or it is not clear which is meant; lists the names.
    """
    by_name = {experiment.name: experiment for experiment in experiments}
    if name is not None:
        if name not in by_name:
            raise SettingsError(f"--baseline {name}: no such experiment here; there are: {', '.join(by_name)}")
        return by_name[name]
    without = [name for name, experiment in by_name.items() if experiment.settings.targets == "none"]
    if len(without) > 1 and BASELINE not in without:
        raise SettingsError(f"several experiments have no teacher ({', '.join(without)}); choose one with --baseline")
    return by_name[BASELINE if len(without) > 1 else without[0]] if without else None


def differing_settings(experiments: list[Experiment]) -> dict[str, list[str]]:
    """Settings that are not the same everywhere: dotted name to one value, as text, for each experiment."""
    flat = [flattened(comparable_settings(experiment.settings)) for experiment in experiments]
    rows = {name: [values.get(name, NOT_SET) for values in flat] for values in flat for name in values}
    hashes = [(experiment.runs[0].targets_hash or "none")[:12] for experiment in experiments]
    # Only where settings do not tell already: two caches of one teacher with different views.
    if len(set(hashes) - {"none"}) > 1:
        rows["(made the targets)"] = hashes
    above = {name[:place] for name in rows for place, letter in enumerate(name) if letter == "."}
    # `augmentation: null` beside `augmentation.count: 4`: the settings below say it all.
    return {name: values for name, values in rows.items() if len(set(values)) > 1 and name not in above}


def flattened(values: dict[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as dotted names with values as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{above}{name}.")
        else:
            flat[above + name] = json.dumps(value) if not isinstance(value, str) else value
    return flat
