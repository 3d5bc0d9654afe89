"""Checkpoints on disk: written whole or not at all, read without running any code they may hold."""

import hashlib
import io
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from tqdm import tqdm

from common.base.content_hash import check_archive, check_safetensors, sealed_archive
from common.base.errors import CheckpointError
from common.base.file_kinds import ARCHIVE, SAFETENSORS, UNKNOWN, FileKind, kind_of
from common.base.files import write_atomically
from common.base.text import first_line, printable

LISTED = 12
SHORT_HASH = 12


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint that is either whole or absent, with a hash of its bytes.

    It may hold tensors, numbers, strings, lists and dictionaries only, so that it loads without unpickling code.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, sealed_archive(buffer.getvalue()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt`/`.pth`/`.ckpt` or `.safetensors` file onto the CPU, without unpickling code.

    What the file keeps about its content, a hash or checksums, is checked. Of a file without a hash the SHA-256 is
    printed, so that it can be compared with its source's.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at '{path}'. Check the path, or make or download the checkpoint first.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    check_kind(path, kind_of(data))
    try:
        content, sealed = decoded(data)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values{what}. Other content could run code and is never "
            "loaded. If you trust the file, open it where it was made and save model.state_dict() alone, as .pt or "
            ".safetensors."
        ) from error
    except Exception as error:  # damaged bytes break their readers in many ways
        # PyTorch's own words may advise to run the code in the file.
        why = "PyTorch does not read it as weights" if "weights_only" in str(error) else first_line(error)
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({why}). Copy or download it again, or go back to an older one."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a dictionary of tensors.")
    if not sealed:
        digest = hashlib.sha256(data).hexdigest()[:SHORT_HASH]
        note = f"note: {path} keeps no hash of its content; its SHA-256 is {digest}..., compare it with its source's"
        tqdm.write(note, file=sys.stderr)
    return content


def check_kind(path: Path, kind: FileKind) -> None:
    """Raise a CheckpointError for a file that is no checkpoint, or another kind of one than its name says."""
    if kind.next_step:
        raise CheckpointError(f"{path}: no checkpoint; the file is {kind.what}. {kind.next_step}")
    if (path.suffix == ".safetensors") != (kind is SAFETENSORS) and kind is not UNKNOWN:
        suffix = ".safetensors" if kind is SAFETENSORS else ".pt"
        raise CheckpointError(
            f"{path}: the file is {kind.what}, which its name does not say. Rename it to {path.stem}{suffix}."
        )


def decoded(data: bytes) -> tuple[Any, bool]:
    """The content of a checkpoint file, and whether it was held against a hash kept in the file."""
    kind = kind_of(data)
    if kind is SAFETENSORS:
        tensors = load_safetensors(data)
        return tensors, check_safetensors(data, tensors)
    sealed = kind is ARCHIVE and check_archive(data)
    with warnings.catch_warnings():
        # About odd pickles: they are either read or refused.
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), sealed


def check_fits(source: str, given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse weights of other names or shapes, and whole numbers where the model has fractions (quantised weights).

    Raises:
        CheckpointError: names what is missing or left over, and each tensor that is not as in the model.
    """
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes, kinds = [], []
    for name in (name for name in expected if name in given):
        found, wanted = given[name], expected[name]
        if found.shape != wanted.shape:
            shapes.append(f"{name}: {tuple(found.shape)} in the file, {tuple(wanted.shape)} in the model")
        if wanted.is_floating_point() and not found.is_floating_point():
            kinds.append(f"{name}: {found.dtype}")
    problems = {
        f"missing in the file ({len(missing)})": missing,
        f"unknown to the model ({len(unexpected)})": unexpected,
        f"shapes differ ({len(shapes)})": shapes,
        "no floating-point numbers": kinds,
    }
    lines = [f"  {problem}: {listed(names)}" for problem, names in problems.items() if names]
    if lines:
        raise CheckpointError("\n".join([f"{source}: does not fit {what}; nothing was loaded.", *lines]))


def check_plain(source: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a CheckpointError for tensors that are not dense numbers, with what they are."""
    bad = {name: kind for name, value in weights.items() if (kind := kind_of_tensor(value))}
    if bad:
        words = listed([f"{name} ({kind})" for name, kind in bad.items()])
        raise CheckpointError(f"{source}: weights must be plain, dense tensors; nothing was loaded: {words}")


def kind_of_tensor(value: torch.Tensor) -> str:
    """What keeps a tensor from being a plain one; empty for a plain one."""
    if value.layout is not torch.strided:
        return str(value.layout).removeprefix("torch.")
    if value.device.type != "cpu":
        return f"on {value.device.type}, without values"
    if value.is_quantized:
        return "quantised"
    return "complex" if value.is_complex() else ""


def check_finite(source: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a CheckpointError that names the weights which hold NaN or infinity."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {listed(bad)}. The file is damaged or its training diverged; "
            "nothing was loaded."
        )


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(printable, names[:LISTED])) + more
