"""Checkpoints on disk: written whole or not at all, read without running any code they may hold."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import CheckpointError
from common.files import replacing

WRAPPERS = ("model_state_dict", "state_dict", "model")
MODULE_PREFIX = "module."
LISTED = 12


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint that is either whole or absent.

    Args:
        path: where.
        content: tensors, numbers, strings, lists and dictionaries only, so that it loads without unpickling code.
    """
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt`/`.pth`/`.ckpt` or `.safetensors` file onto the CPU, without unpickling code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at '{path}'. Check the path, or make or download the checkpoint first.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: cannot be read as tensors and plain values only: {first_line(error)} Other content could "
            "run code and is never loaded. If you trust the file, open it where it was made and save "
            "model.state_dict() alone, as .pt or .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a dictionary of tensors.")
    return content


def load_state_dict_file(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint: unwrapped from `state_dict`-like keys and stripped of `module.` prefixes.

    Raises:
        CheckpointError: as `load_checkpoint`, or there is something else than tensors among the weights.
    """
    content = load_checkpoint(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = dict(content[wrapper])
            break
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: among the weights stand entries that are no tensors: {listed(others)}. "
            "Save model.state_dict() alone."
        )
    return {name.removeprefix(MODULE_PREFIX): value for name, value in content.items()}


def check_same_names(source: str, given: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuse weights that leave any tensor of the model, or of the file, unmatched.

    Raises:
        CheckpointError: names what is missing and what is left over.
    """
    missing = sorted(set(expected) - set(given))
    unexpected = sorted(set(given) - set(expected))
    if not missing and not unexpected:
        return
    lines = [f"{source}: does not fit {what}; nothing was loaded."]
    if missing:
        lines.append(f"  missing in the file ({len(missing)}): {listed(missing)}")
    if unexpected:
        lines.append(f"  unknown to the model ({len(unexpected)}): {listed(unexpected)}")
    raise CheckpointError("\n".join(lines))


def check_same_shapes(
    source: str, given: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuse weights of another shape.

    Raises:
        CheckpointError: names each tensor with both shapes.
    """
    wrong = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(shape)} in the model"
        for name, shape in expected.items()
        if tuple(given[name].shape) != tuple(shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: does not fit {what}; nothing was loaded.\n  shapes differ ({len(wrong)}): {listed(wrong)}"
        )


def check_finite(source: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: names the tensors.
    """
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {listed(bad)}. The file is damaged or its training diverged; "
            "nothing was loaded."
        )


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and values, independent of order and of the file's format."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name].detach().cpu().numpy())
        digest.update(f"{name} {value.shape} {value.dtype.str}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
