"""What every training run needs to go on where it stopped: strict weights, the same settings, random states."""

from pathlib import Path
from typing import Any

import torch

from common.checkpoint import check_same_names, check_same_shapes
from common.config_files import same_config
from common.errors import CheckpointError


def check_same_settings(path: Path, stored: dict[str, Any], current: dict[str, Any], may_change: set[str]) -> None:
    """Refuse to continue a run with settings that make it another one.

    Args:
        path: of the state, for the message.
        stored: settings of the run, as they go into JSON.
        current: settings now, likewise.
        may_change: names that a resumed run may change.

    Raises:
        CheckpointError: lists each setting that differs.
    """
    names = changed_settings(stored, current, may_change)
    if names:
        lines = "\n".join(f"  {name}: {stored.get(name)!r} in the run, {current[name]!r} now" for name in names)
        raise CheckpointError(
            f"{path}: cannot resume with other settings:\n{lines}\nUse the run's settings, or another run folder."
        )


def changed_settings(stored: dict[str, Any], current: dict[str, Any], ignored: set[str]) -> list[str]:
    """Names of the settings that are not what they were; those of a run from before may name its dataset otherwise."""
    names = [name for name in current if name not in ignored and stored.get(name) != current[name]]
    return [name for name in names if name != "dataset" or not same_config(stored.get(name), current[name])]


def load_strictly(path: Path, module: torch.nn.Module, weights: dict[str, torch.Tensor], what: str) -> None:
    """Load weights that match in every name and shape.

    Raises:
        CheckpointError: names what does not match.
    """
    expected = module.state_dict()
    check_same_names(str(path), weights, expected, what)
    check_same_shapes(str(path), weights, {name: tuple(value.shape) for name, value in expected.items()}, what)
    module.load_state_dict(weights, strict=True)


def random_state() -> dict[str, Any]:
    """State of PyTorch's generators; NumPy's are made anew from the seed for every use and have none."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
