"""Teacher, students, caches and commands at a size that a test can afford."""

import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner, Result

from common.base.config import load_settings
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.targets.store import StoreIdentity, TargetEncoding, TargetStore, ViewSet
from common.targets.store.encoding import ArrayEncoding
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures
from stage1_dump_teacher.__main__ import main as stage_one
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.settings import ExperimentSettings
from tests.shared.kitti import read_points

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
DATASET = CONFIGS / "datasets" / "semantic_kitti.yaml"

REAL_GRID = (80, 64, 16)
"""Bins (rho, phi, z) for real scans; radial and azimuth sizes divide by 8, so teacher and student layers match."""

STREET_GRID = (48, 40, 16)
"""Bins for made-up streets. As high as `REAL_GRID`, so that the golden reduced student fits both."""

REDUCED_STUDENT = ("student.point_channels=64", "student.compressed_channels=16")
"""Widths of the golden reduced student."""

NARROW = "student.width=8"
"""U-Net of students whose size does not matter: an eighth of the golden one's channels, a fraction of its time."""

FULL_LAYERS = {"down1c": 16, "down3c": 64, "up4e": 128, "up2e": 32, "up0e": 16}
"""Channels of the golden reduced teacher's layers (base width 8)."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: at these sizes several only wait for each other, and results depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def command_named(main: click.Group, name: str) -> click.Command:
    """One command of a program."""
    found = main.get_command(click.Context(main), name)
    assert found is not None, name
    return found


def command(main: click.Command, *words: Any) -> Result:
    """Run a command of a stage in this process; an exception that is not a click error is raised."""
    with one_thread():
        result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(result: Result) -> str:
    """Output of a command that must have worked."""
    assert result.exit_code == 0, result.output
    return result.output


def fail(result: Result) -> str:
    """Output of a command that must have refused, in one line without line breaks."""
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def next_command(output: str) -> list[str]:
    """Words of the command that a command names as the next one, as a shell reads them, without the program."""
    return shlex.split(output.partition("next: polar-distill ")[2].partition("\n")[0])


def settings_words(*overrides: str) -> list[str]:
    """`--set` options."""
    return [word for override in overrides for word in ("--set", override)]


def dump_words(data: Path, teacher: Path, cache: Path, grid: tuple[int, int, int], *overrides: str) -> list[str]:
    """Words of the dump command: float32 and without voxel features unless overridden."""
    reduced = (f"dataset={DATASET}", f"grid.shape={list(grid)}", *encoding_words("float32"), "voxel_features=false")
    options = {"--data": data, "--teacher": teacher, "--cache": cache, "--config": CONFIGS / "teachers/cylinder3d.yaml"}
    words = [str(word) for option in options.items() for word in option]
    return ["dump", *words, "--device", "cpu", *settings_words(*reduced, *overrides)]


def dump(data: Path, teacher: Path, cache: Path, grid: tuple[int, int, int], *overrides: str) -> Result:
    """Run the dump command in this process."""
    return command(stage_one, *dump_words(data, teacher, cache, grid, *overrides))


def encoding_words(kind: str) -> tuple[str, ...]:
    """Settings that store every array in one encoding."""
    return tuple(f"encoding.{part}={kind}" for part in ("pillar_features", "voxel_features", "logits"))


def encoding_of(kind: ArrayEncoding, **more: Any) -> TargetEncoding:
    """The same encoding for every array."""
    return TargetEncoding(pillar_features=kind, voxel_features=kind, logits=kind, **more)


def file_of(store: TargetStore, scan: ScanId, view: int) -> Path:
    """Where a store in a folder keeps a scan and view."""
    return Path(store.location) / store.name(scan, view)


def experiment_overrides(grid: tuple[int, int, int]) -> tuple[str, ...]:
    """Settings that make any experiment a reduced one."""
    return (f"dataset={DATASET}", f"grid.shape={list(grid)}", *REDUCED_STUDENT)


def experiment_file(name: str) -> Path:
    """YAML file of one of the project's experiments."""
    return CONFIGS / "experiments" / f"{name}.yaml"


def reduced_experiment(grid: tuple[int, int, int], *overrides: str, name: str = "full") -> ExperimentSettings:
    """Settings of one of the project's experiments at reduced size."""
    return load_settings(ExperimentSettings, experiment_file(name), (*experiment_overrides(grid), *overrides))


def train_words(
    data: Path, cache: Path | None, run: Path, *overrides: str, name: str = "full", options: tuple[Any, ...] = ()
) -> list[str]:
    """Words of the train command on made-up streets, for a `NARROW` student unless overridden."""
    words = ["train", "--data", data, "--experiment", experiment_file(name), "--run", run, "--device", "cpu", *options]
    words += [] if cache is None else ["--cache", cache]
    return [str(word) for word in words] + settings_words(*experiment_overrides(STREET_GRID), NARROW, *overrides)


def train(
    data: Path, cache: Path | None, run: Path, *overrides: str, name: str = "full", options: tuple[Any, ...] = ()
) -> Result:
    """Run the train command in this process, on made-up streets."""
    return command(stage_two, *train_words(data, cache, run, *overrides, name=name, options=options))


def start(*words: Any) -> "subprocess.Popen[str]":
    """Start Python in the repository with one computing thread, and no GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def read_until(process: "subprocess.Popen[str]", word: str) -> None:
    """Read the output of a process up to a line with a word in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return
    raise AssertionError(f"ended without {word!r}: {''.join(lines)}")


def finish(process: "subprocess.Popen[str]") -> str:
    """Output of a process that must end well."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def made_up_targets(seed: int = 0, grid: tuple[int, int, int] = STREET_GRID, voxels: int = 40) -> TeacherTargets:
    """Random targets of one scan with two layers of one resolution and one of another, voxel features included."""
    generator = np.random.default_rng(seed)
    half = (grid[0] // 2, grid[1] // 2, grid[2] // 2)
    pillar_layers, voxel_layers = {}, {}
    for name, shape in (("down1c", half), ("up2e", half), ("up0e", grid)):
        bins = random_bins(np.random.default_rng([seed, *shape]), shape, voxels)
        pillars = torch.unique(bins[:, :3], dim=0)
        channels = FULL_LAYERS[name]
        pillar_layers[name] = PillarFeatures(pillars, random_values(generator, len(pillars), channels), shape[:2])
        voxel_layers[name] = VoxelFeatures(bins, random_values(generator, len(bins), channels), shape)
    occupied = voxel_layers["up0e"].voxels
    return TeacherTargets(occupied, random_values(generator, len(occupied), 20), pillar_layers, voxel_layers)


def random_bins(generator: np.random.Generator, shape: tuple[int, ...], count: int) -> torch.Tensor:
    """Distinct sorted bins of scan 0 with both corners of the grid among them, int64 [count, 4]."""
    inner = 1 + generator.choice(np.prod(shape) - 2, count - 2, replace=False)
    linear = np.sort(np.concatenate(([0], inner, [np.prod(shape) - 1])))
    columns = np.unravel_index(linear, shape)
    return torch.from_numpy(np.stack((np.zeros(count, np.int64), *columns), axis=1))


def random_values(generator: np.random.Generator, rows: int, channels: int) -> torch.Tensor:
    """float32 [rows, channels] of the size of a teacher's features."""
    return torch.from_numpy(generator.normal(0.0, 3.0, (rows, channels)).astype(np.float32))


def made_up_identity(label_map: LabelMap, **changes: Any) -> StoreIdentity:
    """Identity of a store of `made_up_targets`, float32, with some fields changed."""
    parts: dict[str, Any] = {
        "teacher_hash": "a" * 64,
        "grid": PolarGrid.named("polarnet", STREET_GRID),
        "label_map": label_map,
        "layers": {name: FULL_LAYERS[name] for name in ("down1c", "up2e", "up0e")},
        "voxel_features": True,
        "encoding": encoding_of("float32"),
        "views": ViewSet(count=2),
    }
    return StoreIdentity.of(**(parts | changes))


def same_targets(left: TeacherTargets, right: TeacherTargets, tolerance: float = 0.0) -> bool:
    """Whether two sets of targets hold the same coordinates, and values within a relative tolerance of their norm."""
    pairs = [(left.voxels, right.voxels), (left.logits, right.logits)]
    if left.layers.keys() != right.layers.keys() or left.voxel_layers.keys() != right.voxel_layers.keys():
        return False
    for name in left.layers:
        one, other = left.layers[name], right.layers[name]
        pairs += [(one.pillars, other.pillars), (one.features, other.features)]
        if tuple(one.shape) != tuple(other.shape):
            return False
    for name in left.voxel_layers:
        pairs += [(left.voxel_layers[name].voxels, right.voxel_layers[name].voxels)]
        pairs += [(left.voxel_layers[name].features, right.voxel_layers[name].features)]
    return all(
        a.shape == b.shape
        and (torch.equal(a, b) if not a.is_floating_point() else float((a - b).norm()) <= tolerance * float(b.norm()))
        for a, b in pairs
    )


def read_all(store: TargetStore, data: Path) -> dict[tuple[Any, int], TeacherTargets]:
    """Every finished scan-view of a store, read whole."""
    voxels = store.identity.voxel_features
    return {
        (scan, view): store.read(scan, view, read_points(data, scan), voxel_features=voxels)[0]
        for scan, view in sorted(store.finished())
    }


def drop_members(path: Path, chosen: Callable[[str], bool]) -> None:
    """Write the zip again, well formed, without some members."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not chosen(name)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def saved(run: Path) -> dict[str, Any]:
    """A run's training state."""
    return torch.load(run / "last.pt", weights_only=True)
