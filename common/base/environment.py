"""What a run was made with: versions, devices and the state of the project's own code, kept beside its results."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from common import __version__

PROJECT = "polar-distill"
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "spconv-cu118", "cumm-cu118", "torch-scatter", "numpy"),
    *("zarr", "numcodecs", "safetensors", "pydantic", "click"),
)
"""Packages whose version can change a result, or the reading of a file."""

GIT_TIMEOUT_SECONDS = 10


def environment() -> dict[str, Any]:
    """Where and with what this process runs, as plain values that JSON and YAML can hold.

    Returns:
        `project` (version), `git_commit` and `git_modified` (None outside a checkout), `python`, `platform`,
        `processors`, `threads` (of PyTorch), `cuda` (version PyTorch was built for, or None), `devices` (names of the
        usable GPUs), `packages` (version by name, None where not installed).
    """
    import torch

    commit, modified = git_state(REPOSITORY)
    return {
        "project": __version__,
        "git_commit": commit,
        "git_modified": modified,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": processors(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": cuda_device_names(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str | None:
    """Installed version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cuda_device_names() -> list[str]:
    """Names of the GPUs that PyTorch can see, by index."""
    # Imported here, so that the doctor can say that it cannot be.
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(index) for index in range(usable)]


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of a checkout and whether tracked files differ from it; (None, None) where `folder` is no checkout's root.

    A missing git, or one that refuses, counts as no checkout: results must not depend on it.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--verify", "HEAD"), None if changes is None else bool(changes)


def processors() -> int:
    """Processors that this process may use; fewer than the machine has where it is bound to some of them."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processors_of_rank() -> int:
    """Processors for this process's share, where torchrun started several on the machine; at least 1."""
    return max(processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
