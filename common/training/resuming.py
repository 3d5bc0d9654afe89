"""What a training run needs to go on where it stopped: strict weights, the same settings and scans, random states."""

import hashlib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import click
import torch

from common.base.config import Settings, parse_settings
from common.base.config_files import same_config
from common.base.errors import CheckpointError, SettingsError
from common.scans.scan_id import ScanId
from common.training.checkpoint import check_finite, check_fits, check_plain

ScansOfSequences = dict[str, dict[str, int | str]]
"""Of each sequence the number of its scans (`scans`) and a hash of their names (`hash`)."""

ALWAYS_SAVED = ("epoch", "step_in_epoch", "step", "best_miou")
OTHER_GPUS = "another number of GPUs than before: random numbers continue only on GPUs that were used before"


def check_same_settings(path: Path, stored: dict[str, Any], current: dict[str, Any], may_change: set[str]) -> None:
    """Refuse to continue a run with settings, as they go into JSON, that differ in others than `may_change`.

    Raises:
        CheckpointError: lists each setting that differs.
    """
    names = changed_settings(stored, current, may_change)
    if names:
        lines = "\n".join(f"  {name}: {stored.get(name)!r} in the run, {current[name]!r} now" for name in names)
        raise CheckpointError(
            f"{path}: cannot resume with other settings:\n{lines}\nUse the run's settings, or another run folder."
        )


def with_later_settings(kind: type[Settings], stored: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run as they go into JSON, with defaults for those that are newer than the run.

    Settings that can no longer be used stay as they are: they differ from all that can.
    """
    try:
        return parse_settings(kind, stored, "the run").model_dump(mode="json")
    except SettingsError:
        return stored


def changed_settings(stored: dict[str, Any], current: dict[str, Any], ignored: set[str]) -> list[str]:
    """Names of the settings that are not what they were; those of a run from before may name its dataset otherwise."""
    names = [name for name in current if name not in ignored and stored.get(name) != current[name]]
    return [name for name in names if name != "dataset" or not same_config(stored.get(name), current[name])]


def scans_of_sequences(scans: Iterable[ScanId]) -> ScansOfSequences:
    """Which scans a run trains on, in a few words for its saved state."""
    frames: dict[str, list[str]] = {}
    for scan in scans:
        frames.setdefault(scan.sequence, []).append(scan.frame)
    return {
        sequence: {"scans": len(names), "hash": hashlib.sha256("\n".join(names).encode()).hexdigest()}
        for sequence, names in frames.items()
    }


def check_same_scans(path: Path, stored: ScansOfSequences | None, current: ScansOfSequences) -> None:
    """Refuse to continue a run on other scans. States saved before this was kept (None) get a note instead.

    Raises:
        CheckpointError: lists each sequence that differs.
    """
    if stored is None:
        click.echo(f"note: {path} does not say which scans the run trained on; they cannot be compared", err=True)
        return
    lines = []
    for sequence in sorted(stored.keys() | current.keys()):
        before, now = stored.get(sequence), current.get(sequence)
        if before != now:
            counts = [f"{entry['scans']} scans" if entry else "none" for entry in (before, now)]
            others = ", of other names" if counts[0] == counts[1] else ""
            lines.append(f"  sequence {sequence}: {counts[0]} in the run, {counts[1]} now{others}")
    if lines:
        raise CheckpointError(
            f"{path}: cannot resume with other training scans:\n" + "\n".join(lines) + "\nUse the run's --data with "
            "all its scans and labels, or another run folder."
        )


def load_strictly(path: Path, module: torch.nn.Module, weights: dict[str, torch.Tensor], what: str) -> None:
    """Load weights; a CheckpointError names what differs in name or shape, or is no finite number."""
    check_plain(str(path), weights)
    check_fits(str(path), weights, module.state_dict(), what)
    check_finite(str(path), weights)
    module.load_state_dict(weights, strict=True)


def checked_progress(stored: dict[str, Any], current: Mapping[str, float]) -> dict[str, float]:
    """The stored counters of a run, once each is found usable; `current` are those of a run that begins.

    Older versions stored fewer counters.

    Raises:
        ValueError: one is unknown, missing, or no number that a run can have reached.
    """
    for name, value in stored.items():
        whole = isinstance(current.get(name), int)
        usable = isinstance(value, int) and value >= 0 if whole else isinstance(value, float) and isfinite(value)
        if name not in current or not usable:
            raise ValueError(f"progress: {name!r:.60} is {value!r:.60}")
    missing = [name for name in ALWAYS_SAVED if name not in stored]
    if missing:
        raise ValueError(f"progress: without {', '.join(missing)}")
    return stored


def random_state() -> dict[str, Any]:
    """State of PyTorch's generators; NumPy's are made anew from the seed for every use and have none."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> bool:
    """Restore what `random_state` returned, of the GPUs that there are now as well.

    Returns:
        whether there are as many GPUs as then.

    Raises:
        ValueError: it is something else.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        torch.set_rng_state(state["cpu"])
        for index, value in enumerate(state["cuda"][:gpus]):
            torch.cuda.set_rng_state(value, index)
    except RuntimeError as error:
        raise ValueError(f"random state: {error}") from error
    return len(state["cuda"]) == gpus
