"""What the doctor looks at on the device that was chosen: whether it computes, convolves and copies as it should."""

import logging
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

from common.base.environment import cuda_device_names, package_version, processors

SPCONV_TOLERANCE = 1e-2
"""Relative; loose enough for TF32 on a GPU, far below what a wrong kernel order would do."""

FIRST_NATIVE, FIRST_COMPILED = (5, 0), (10, 0)
"""Compute capabilities of GPUs from which on spconv's wheels hold code, and from which on only PTX to compile it."""

COPIES = 30

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


def check_device(name: str = "auto") -> Check:
    """The device that was chosen, and whether it computes."""
    import torch

    from common.base.devices import select_device

    device = select_device(name)
    if device.type == "cpu":
        return Check("note", f"CPU with {processors()} processors, no GPU", "A full dump or training needs a GPU.")
    capability, all_of_them = torch.cuda.get_device_capability(device), ", ".join(cuda_device_names())
    return Check(
        "ok",
        f"CUDA: {torch.cuda.get_device_name(device)} ({device} of {all_of_them}), sm_{capability[0]}{capability[1]}; "
        f"PyTorch has {' '.join(torch.cuda.get_arch_list())}; spconv's code for it is {sparse_code(capability)}",
    )


def sparse_code(capability: tuple[int, int]) -> str:
    """How spconv gets its code for GPUs of some capability."""
    if capability < FIRST_NATIVE:
        return "missing"
    return "native" if capability < FIRST_COMPILED else "compiled at first use: the first start is slow"


def check_spconv(name: str = "auto") -> Check:
    """Sparse convolution computes what a dense one does. In a process of its own: native code can take it down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        errors = pool.submit(sparse_convolution_errors, name).result()
    finding = ", ".join(
        f"{device}: differs from a dense convolution by {error:.0e}" for device, error in errors.items()
    )
    if max(errors.values()) > SPCONV_TOLERANCE:
        step = "Install the program in a new environment; do not use this teacher's outputs."
        return Check("problem", finding, step)
    return Check("ok", finding)


def check_copies(name: str = "auto") -> Check:
    """What another thread reads once a copy from the device has ended is what was there, as in a dump."""
    import torch

    from common.base.devices import select_device
    from common.base.records import start_to_host

    device, wrong = select_device(name), 0
    with ThreadPoolExecutor(1) as pool:
        for number in range(COPIES):
            # What is computed takes the device a while: a copy that nobody waits for would be read before it is there.
            values = (torch.arange(2.0**20, device=device).sin().sum() * 0 + number).repeat(2**18)
            (copied,) = pool.submit(start_to_host([values])).result()
            wrong += not bool((copied == number).all())
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
    found = {name: segment_max(values.to(name), segment.to(name), 17).cpu() for name in devices}
    wrong = [name for name, maxima in found.items() if not torch.equal(maxima, expected)]
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
