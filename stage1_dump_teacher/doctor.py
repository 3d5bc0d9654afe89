"""`doctor`: looks at a machine and a user's files before hours are spent on them.

Each check is a small function that returns a `Check`; what a check imports it imports itself, so that a package that is
missing or broken shows up as a line of the table and not as a traceback.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import click
import numpy as np
from packaging.requirements import Requirement

from common.base.command_options import cache_option, device_option, optional_data_option, path_type
from common.base.environment import PROJECT, cuda_device_names, package_version, processors
from common.base.errors import PolarDistillError

DATASET = Path("configs/datasets/semantic_kitti.yaml")

FULL_BYTES, TRAIN_BYTES = 22.0e6, 4.3e6
"""One scan-view in the profiles `full` and `train`: means over real scans, full-size teacher that has learned."""

SEMANTIC_KITTI_SCANS = 23_201
"""Scans of the training and validation sequences of SemanticKITTI."""

SPCONV_TOLERANCE = 1e-2
"""Relative; loose enough for TF32 on a GPU, far below what a wrong kernel order would do."""

SPCONV = "spconv"
SPCONV_NATIVE = (5, 0), (9, 0)
"""Compute capabilities of GPUs for which spconv's wheels hold code; of the last one also PTX, for all later ones."""

COPIES = 30

COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        status: `problem` makes the doctor fail, `note` is worth knowing.
        finding: what is the case.
        next_step: what to do about it; empty where there is nothing to do.
    """

    status: Status
    finding: str
    next_step: str = ""


@click.command()
@optional_data_option
@click.option("--teacher", type=path_type, help="Published Cylinder3D checkpoint.")
@cache_option
@click.option("--dataset", type=path_type, default=DATASET, help="YAML file with the dataset's classes.")
@device_option
@click.pass_context
def doctor(
    context: click.Context, data: Path | None, teacher: Path | None, cache: str, dataset: Path, device: str
) -> None:
    """Check this machine and, where they are given, the scans, the teacher and the cache. Fails on any problem."""
    problems = 0
    for name, check in checks(data, teacher, cache, dataset, device):
        result = run_check(check)
        problems += result.status == "problem"
        click.echo(f"{click.style(f'{result.status:<8}', fg=COLOURS[result.status])} {name:<14} {result.finding}")
        if result.next_step:
            click.echo(f"{'':<23} -> {result.next_step}")
    click.echo(f"{problems} problem{'s' if problems != 1 else ''} found." if problems else "No problems found.")
    if problems:
        context.exit(1)


def checks(
    data: Path | None, teacher: Path | None, cache: str, dataset: Path, device: str = "auto"
) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Names and checks, in the order of the table."""
    yield "python", check_python
    yield "packages", check_packages
    yield "device", lambda: check_device(device)
    yield "spconv", lambda: check_spconv(device)
    yield "copies", lambda: check_copies(device)
    yield "segment max", check_segment_max
    yield "torch-scatter", check_torch_scatter
    yield "zarr", check_zarr
    if "://" not in cache:
        yield "disk", lambda: check_disk(Path(cache), data)
    if data is not None:
        yield "scans", lambda: check_data(data, dataset)
    if teacher is not None:
        yield "teacher", lambda: check_teacher(teacher)


def run_check(check: Callable[[], Check]) -> Check:
    """The check's result; whatever it raises becomes a problem."""
    try:
        return check()
    except PolarDistillError as error:
        return Check("problem", error.message)
    except Exception as error:
        return Check(
            "problem", f"{type(error).__name__}: {error}", "Run `make clean setup`; if that does not help, report it."
        )


def check_python() -> Check:
    """spconv has wheels for the interpreter."""
    version = sys.version.split()[0]
    if sys.version_info < (3, 11):  # noqa: UP036 - this check is what tells a user who forced the installation
        return Check("problem", version, "Install Python 3.11 or newer and run `make clean setup PYTHON=python3.11`.")
    if sys.version_info >= (3, 14):
        return Check("problem", version, "spconv has no wheels for it. Run `make clean setup PYTHON=python3.13`.")
    return Check("ok", version)


def check_packages() -> Check:
    """Every required package is installed in a version that the project allows."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return Check("note", f"{PROJECT} is not installed, so that versions were not checked", "Run `make setup`.")
    wrong = []
    found = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        # Builds of spconv for other versions of CUDA do as well.
        name = installed_spconv() if requirement.name.startswith(SPCONV) else requirement.name
        version = package_version(name)
        if version is None:
            wrong.append(f"{name} is missing ({requirement.specifier} needed)")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{name} is {version} ({requirement.specifier} needed)")
        else:
            found.append(f"{name} {version}")
    if wrong:
        return Check("problem", "; ".join(wrong), "Run `make setup`. Stage two alone runs without spconv-cu118.")
    return Check("ok", ", ".join(found))


def installed_spconv() -> str:
    """The build of spconv that is installed: spconv, spconv-cu118, spconv-cu126 ...; `spconv` without one."""
    names = (distribution.metadata["Name"] or "" for distribution in metadata.distributions())
    return next((name for name in names if name == SPCONV or name.startswith(f"{SPCONV}-cu")), SPCONV)


def check_device(name: str = "auto") -> Check:
    """The device that was chosen, and whether it computes."""
    import torch

    from common.base.devices import select_device

    device = select_device(name)
    if device.type == "cpu":
        return Check("note", f"CPU with {processors()} processors, no GPU", "A full dump or training needs a GPU.")
    capability, all_of_them = torch.cuda.get_device_capability(device), ", ".join(cuda_device_names())
    finding = (
        f"CUDA: {torch.cuda.get_device_name(device)} ({device} of {all_of_them}), sm_{capability[0]}{capability[1]}; "
        f"PyTorch has {' '.join(torch.cuda.get_arch_list())}; spconv's code for it is {sparse_code(capability)}"
    )
    return Check("ok", finding)


def sparse_code(capability: tuple[int, int]) -> str:
    """How spconv gets its code for GPUs of some capability."""
    if SPCONV_NATIVE[0] <= capability < (SPCONV_NATIVE[1][0] + 1, 0):
        return "native"
    return "compiled at first use: the first start is slow" if capability > SPCONV_NATIVE[1] else "missing"


def check_spconv(name: str = "auto") -> Check:
    """Sparse convolution computes what a dense one does. In a process of its own: native code can take it down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        errors = pool.submit(sparse_convolution_errors, name).result()
    finding = ", ".join(
        f"{device}: differs from a dense convolution by {error:.0e}" for device, error in errors.items()
    )
    if max(errors.values()) > SPCONV_TOLERANCE:
        return Check("problem", finding, "Reinstall with `make clean setup`; do not use this teacher's outputs.")
    return Check("ok", finding)


def check_copies(name: str = "auto") -> Check:
    """What is read right after a copy from the device is what was there, in a thread of its own as in a dump."""
    import torch

    from common.base.devices import Launch, select_device, side_stream
    from common.base.records import to_host

    device, wrong = select_device(name), 0

    def copy(values: torch.Tensor, launch: Launch) -> torch.Tensor:
        launch.wait()
        with side_stream(device):
            return to_host([values])[0]

    with ThreadPoolExecutor(1) as pool:
        for number in range(COPIES):
            with Launch(device) as launch:
                values = (torch.arange(2.0**20, device=device).sin().sum() * 0 + number).repeat(2**18)
            wrong += not bool((pool.submit(copy, values, launch).result() == number).all())
    if wrong:
        return Check("problem", f"{wrong} of {COPIES} copies from {device} were read too early", "Report this.")
    return Check("ok", f"{COPIES} copies from {device} arrived whole")


def sparse_convolution_errors(name: str = "auto") -> dict[str, float]:
    """Relative difference between a submanifold and a dense convolution on a full 4x4x4 grid, on the CPU and the device
    that was chosen.
    """
    # It makes torch warn of the way it asks whether it is traced, in the middle of the table.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    import spconv.pytorch as spconv
    import torch
    from spconv.core import ConvAlgo

    from common.base.devices import select_device

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 8, generator=generator)
    weight = torch.randn(16, 3, 3, 3, 8, generator=generator)
    sites = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(4)] * 3), (1, 0)).int()
    maps = features.reshape(1, 4, 4, 4, 8).permute(0, 4, 1, 2, 3)
    dense = torch.nn.functional.conv3d(maps, weight.permute(0, 4, 1, 2, 3), padding=1)
    expected = dense[0].permute(1, 2, 3, 0).reshape(64, 16)
    errors = {}
    for device in dict.fromkeys((torch.device("cpu"), select_device(name))):
        algorithm = ConvAlgo.Native if device.type == "cpu" else None
        layer = spconv.SubMConv3d(8, 16, 3, bias=False, algo=algorithm)
        layer.weight.data.copy_(weight)
        tensor = spconv.SparseConvTensor(features.to(device), sites.to(device), [4, 4, 4], 1)
        with torch.inference_mode():
            actual = layer.eval().to(device)(tensor).features.cpu()
        errors[str(device)] = float((actual - expected).norm() / expected.norm())
    return errors


def check_segment_max() -> Check:
    """The maximum over each segment equals a plain loop, on the CPU and the GPU."""
    import torch

    from common.scans.scatter import segment_max

    values = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    segment = torch.arange(200) % 17
    expected = torch.stack([values[segment == row].amax(0) for row in range(17)])
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    wrong = [d for d in devices if not torch.equal(segment_max(values.to(d), segment.to(d), 17).cpu(), expected)]
    if wrong:
        return Check("problem", f"differs from a loop on {', '.join(wrong)}", "Remove torch-scatter or rebuild it.")
    return Check("ok", f"equals a loop on {', '.join(devices)}")


def check_torch_scatter() -> Check:
    """Optional, used on CUDA only."""
    version = package_version("torch-scatter")
    if version is None:
        return Check("note", "not installed (optional, used on CUDA only): PyTorch's own kernel does the same")
    import torch_scatter  # noqa: F401 - a build for another PyTorch fails here

    return Check("ok", version)


def check_zarr() -> Check:
    """A compressed array survives a zip store on disk, the form that targets are kept in."""
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import ZipStore

    values = np.random.default_rng(0).integers(-100, 100, (1000, 64)).astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.zarr.zip"
        with ZipStore(path, mode="w") as store:
            array = zarr.create_array(
                store, shape=values.shape, chunks=values.shape, dtype="i1", compressors=ZstdCodec()
            )
            array[:] = values
        with ZipStore(path, mode="r") as store:
            back = np.asarray(zarr.open_array(store, mode="r")[:])
    if not np.array_equal(back, values):
        return Check("problem", "an array came back changed", "Reinstall with `make clean setup`; check the disk.")
    return Check("ok", "wrote a zstd-compressed array and read it back")


def check_disk(cache: Path, data: Path | None) -> Check:
    """There is room for a dump of the scans in `data`, or else of SemanticKITTI."""
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check("problem", f"{existing} is not a folder that can be written to", "Name another place with CACHE=.")
    scans = len(list(data.glob("sequences/*/velodyne/*.bin"))) if data is not None else SEMANTIC_KITTI_SCANS
    what = f"{scans} scans" if data is not None else f"SemanticKITTI ({scans} scans)"
    least, most = scans * TRAIN_BYTES, scans * FULL_BYTES
    written = sum(path.stat().st_size for path in cache.rglob("*.zip")) if cache.is_dir() else 0
    room = shutil.disk_usage(existing).free + written
    finding = (
        f"{_size(room - written)} free at {existing}; one view of {what} takes about {_size(most)} "
        f"(profile full) or {_size(least)} (profile train)"
    )
    if written:
        finding += f"; {_size(written)} are written"
    if room >= most:
        return Check("ok", finding)
    if room >= least or data is None:
        return Check("note", finding, "Free some space, name another place with CACHE=, or SET=profile=train.")
    return Check("problem", finding, "Name another place with CACHE=, or dump fewer sequences.")


def check_data(data: Path, dataset: Path) -> Check:
    """The scans are where they should be, and the first one with labels can be read through the label map."""
    from common.scans.formats.semantic_kitti import (
        has_labels,
        label_path,
        list_scans,
        present_sequences,
        read_points,
        read_raw_labels,
    )
    from common.scans.label_map import load_label_map

    label_map = load_label_map(dataset)
    present = present_sequences(data)
    sequences = [name for name in present if (data / "sequences" / name / "velodyne").is_dir()]
    scans = list_scans(data, sequences or present or ["00"])
    labelled = [scan for scan in scans if has_labels(data, scan)]
    first = labelled[0] if labelled else scans[0]
    points = read_points(data, first)
    finding = f"{len(scans)} scans, {len(labelled)} with labels"
    for sequence in sequences:
        finding += f"; {sequence}: {sum(scan.sequence == sequence for scan in scans)}"
    finding += f"; {first} has {len(points)} points"
    if not labelled:
        return Check("note", finding, "Without labels a student learns from the teacher alone and cannot be evaluated.")
    raw = read_raw_labels(data, first, len(points))
    classes = np.unique(label_map.to_training(raw, label_path(data, first)))
    return Check("ok", f"{finding} of {len(classes)} classes")


def check_teacher(teacher: Path) -> Check:
    """The checkpoint loads strictly into Cylinder3D."""
    import torch

    from stage1_dump_teacher.teachers.cylinder3d import load_teacher

    loaded = load_teacher(teacher, torch.device("cpu"))
    widths = ", ".join(f"{name} {value}" for name, value in vars(loaded.model.widths).items())
    return Check("ok", f"Cylinder3D with {widths.replace('_', ' ')}; weights {loaded.hash[:12]}")


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
