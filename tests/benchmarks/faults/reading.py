"""What can be read from stores and runs, in a form that compares bit for bit. Called in children only."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.base.errors import PolarDistillError
from common.targets.store import TargetStore
from common.targets.teacher_targets import TeacherTargets
from common.training.checkpoint import load_checkpoint
from common.training.recorder import read_metrics
from tests.targets.store.made_up_targets import numbers

CLOCKS = {"seconds", "waited", "peak_memory_bytes"}
"""What differs between two equal runs."""

REFUSED = "refused: "


def digests(location: Path | str) -> dict[str, str]:
    """A hash of every number of each scan-view of a store, `refused: ...` where it is not given out."""
    store = TargetStore.open(location)
    found = {}
    for scan, view in sorted(store.finished()):
        try:
            targets, parameters = store.read(scan, view, None, voxel_features=store.identity.voxel_features)
            found[f"{scan}.v{view}"] = f"{digest_of(targets)} {parameters.model_dump_json()}"
        except PolarDistillError as error:
            found[f"{scan}.v{view}"] = f"{REFUSED}{error.message}"
    return found


def digest_of(targets: TeacherTargets) -> str:
    """A hash of every number, shape and dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(numbers(targets).items()):
        digest.update(f"{name} {value}".encode())
    return digest.hexdigest()


def scan_file_bytes(folder: Path) -> dict[str, str]:
    """A hash of each scan file of a store in a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.zarr.zip"))
    }


def tree(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def run_digests(folder: Path) -> dict[str, str]:
    """What a training run came to: its state, its student, its numbers at every step."""
    state = torch.load(folder / "last.pt", weights_only=True)
    student = torch.load(folder / "student_last.pt", weights_only=True)
    lines = [
        {key: value for key, value in record.items() if key not in CLOCKS} for record in read_metrics(folder, "train")
    ]
    finished = json.loads((folder / "finished.json").read_text())
    (folder / "settings.yaml").read_text(), json.loads((folder / "environment.json").read_text())
    parts = {"student": student, "metrics": lines, "finished": finished}
    parts |= {name: value for name, value in state.items() if name not in ("settings", "content_hash")}
    return {name: hashlib.sha256(plain(value).encode()).hexdigest() for name, value in parts.items()}


def plain(value: Any) -> str:
    """Nested values as text that is equal only for equal values."""
    if isinstance(value, torch.Tensor):
        array = np.ascontiguousarray(value.detach().cpu().float().numpy() if value.dtype == torch.bfloat16 else value)
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{plain(part)}" for name, part in sorted(value.items(), key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(plain, value)) + "]"
    return repr(value)


def weights_digest(path: Path) -> str:
    """A hash of the weights in a file, in the entry of a training state where it is one."""
    content = load_checkpoint(path)
    return hashlib.sha256(plain(content.get("student", content)).encode()).hexdigest()


def npz_digest(path: Path) -> str:
    """A hash of every array in a NumPy file."""
    with np.load(path, allow_pickle=False) as arrays:
        return hashlib.sha256(
            "".join(f"{name}{v.dtype}{v.shape}{v.tobytes()!r}" for name, v in sorted(arrays.items())).encode()
        ).hexdigest()
