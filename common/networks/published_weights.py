"""Published Cylinder3D checkpoints (spconv 1.x layout) to and from this project's `Cylinder3D`.

Under spconv 1.2.1 a submanifold layer whose `indice_key` was already in use took the stored rulebook: slice i of its
flattened weight acted at the i-th offset of the rulebook's kernel, and slices beyond that kernel never acted at all.
So a published weight (k0, k1, k2, in, out) becomes this model's (out, e0, e1, e2, in) by keeping the first
e0*e1*e2 slices, e the effective kernel. Dead slices may hold anything, NaN included, and are dropped.
"""

import math
from functools import cache

import torch

from common.base.errors import CheckpointError
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.training.checkpoint import check_finite, check_fits

SPARSE = "cylinder_3d_spconv_seg."
DECLARED_KERNELS = {
    "downCntx": {"conv1": (1, 3, 3), "conv1_2": (3, 1, 3), "conv2": (3, 1, 3), "conv3": (1, 3, 3)},
    "resBlock": {"conv1": (3, 1, 3), "conv1_2": (1, 3, 3), "conv2": (1, 3, 3), "conv3": (3, 1, 3), "pool": (3, 3, 3)},
    "upBlock": {
        "trans_dilao": (3, 3, 3),
        "up_subm": (3, 3, 3),
        "conv1": (1, 3, 3),
        "conv2": (3, 1, 3),
        "conv3": (3, 3, 3),
    },
    "ReconNet": {"conv1": (3, 1, 1), "conv1_2": (1, 3, 1), "conv1_3": (1, 1, 3)},
    "logits": {"": (3, 3, 3)},
}
"""Kernels (rho, phi, z) that the original source declares, by block and layer."""


@cache
def published_names() -> frozenset[str]:
    """Names of all weights, which do not depend on the widths."""
    with torch.device("meta"):
        return frozenset(Cylinder3D(TeacherWidths()).state_dict())


def widths_of(published: dict[str, torch.Tensor], source: str) -> TeacherWidths:
    """Read channel counts off the shapes of a published checkpoint.

    Raises:
        CheckpointError: the telling tensors are missing or not in the spconv 1.x layout.
    """
    context = f"{SPARSE}downCntx.conv1.weight"
    logits = f"{SPARSE}logits.weight"
    compression = "cylinder_3d_generator.fea_compression.0.weight"
    missing = [name for name in (context, logits, compression) if name not in published]
    if missing:
        raise CheckpointError(
            f"{source}: not a Cylinder3D checkpoint: {', '.join(missing)} not found among its {len(published)} tensors."
        )
    shape = tuple(published[context].shape)
    if shape[:3] != (1, 3, 3) or len(shape) != 5:
        raise CheckpointError(
            f"{source}: {context} has shape {shape}; the published spconv 1.x layout is (1, 3, 3, in, out). "
            "A checkpoint trained with spconv 2.x computes something else than the published model and cannot be "
            "loaded here."
        )
    for name, dimensions in ((logits, 5), (compression, 2)):
        if published[name].ndim != dimensions:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(published[name].shape)}; {dimensions} dimensions were expected."
            )
    return TeacherWidths(
        point_channels=published[compression].shape[1],
        voxel_channels=published[compression].shape[0],
        base=shape[4],
        classes=published[logits].shape[-1],
    )


def from_published(published: dict[str, torch.Tensor], model: Cylinder3D, source: str) -> dict[str, torch.Tensor]:
    """Weights for `model.load_state_dict` from a published state dict (without `module.` prefixes).

    Raises:
        CheckpointError: any tensor is missing, left over or of another shape, or an acting weight is not finite.
    """
    expected = model.state_dict()
    in_file = {
        name: value.new_empty(published_shape(name, value.shape), device="meta") for name, value in expected.items()
    }
    check_fits(source, published, in_file, f"Cylinder3D with {model.widths}")
    weights = {name: _act(name, value, tuple(expected[name].shape)) for name, value in published.items()}
    check_finite(source, weights)
    return {name: value.to(expected[name].dtype) for name, value in weights.items()}


def to_published(model: Cylinder3D) -> dict[str, torch.Tensor]:
    """The model's weights in the published layout; slices that never act are zero."""
    published = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        kernel = declared_kernel(name)
        if kernel is not None:
            # From (out, rho, phi, z, in) to one slice (in, out) for each offset of the kernel.
            outputs, inputs = value.shape[0], value.shape[-1]
            slices = value.permute(1, 2, 3, 4, 0).reshape(-1, inputs, outputs)
            full = slices.new_zeros(math.prod(kernel), inputs, outputs)
            full[: len(slices)] = slices
            value = full.reshape(*kernel, inputs, outputs)
        published[name] = value.contiguous()
    return published


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a weight in the published layout, from its shape in this model."""
    kernel = declared_kernel(name)
    return shape if kernel is None else (*kernel, shape[4], shape[0])


def declared_kernel(name: str) -> tuple[int, int, int] | None:
    """The kernel that the original source declares for a sparse convolution's weight; None for any other tensor."""
    if not name.startswith(SPARSE) or not name.endswith(".weight"):
        return None
    block, _, layer = name.removeprefix(SPARSE).removesuffix(".weight").partition(".")
    return DECLARED_KERNELS[block.rstrip("0123456789")].get(layer)


def _act(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of a published weight that acts, in the shape that it has in this model."""
    if declared_kernel(name) is None:
        return value
    outputs, *effective, inputs = shape
    acting = value.reshape(-1, inputs, outputs)[: math.prod(effective)]
    return acting.reshape(*effective, inputs, outputs).permute(4, 0, 1, 2, 3).contiguous()
