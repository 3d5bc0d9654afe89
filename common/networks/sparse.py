"""spconv: imported where it is needed first, so that all else works without it, and its choices for a process."""

from functools import cache
from typing import Any

import torch
from torch import nn

from common.base.errors import SettingsError


@cache
def sparse() -> Any:
    """The package spconv.

    Raises:
        SettingsError: it cannot be imported.
    """
    try:
        import spconv.core

        if not torch.cuda.is_available():
            # Of each of these GPU kernels spconv makes a description when `algo` is imported: seconds of CPU time.
            spconv.core.ALL_NATIVE_PARAMS.clear()
            spconv.core.ALL_IMPGEMM_PARAMS.clear()
        import spconv.algo
        import spconv.pytorch
    except ImportError as error:
        raise SettingsError(
            f"Cylinder3D needs spconv, which cannot be imported ({error}). Install a build of it for "
            "this machine: pip install spconv-cu118, which also works without a GPU."
        ) from error
    return spconv


def sparse_convolutions(network: nn.Module) -> list[Any]:
    """All sparse convolutions of a network."""
    return [module for module in network.modules() if isinstance(module, sparse().pytorch.conv.SparseConvolution)]


def use_algorithm_of(network: nn.Module, device: torch.device) -> None:
    """Let a network's sparse convolutions compute on a device: on a CPU only spconv's Native algorithm does."""
    algorithms = sparse().core.ConvAlgo
    for convolution in sparse_convolutions(network):
        convolution.algo = algorithms.Native if device.type == "cpu" else algorithms.MaskImplicitGemm


def set_sparse_precision(tf32: bool) -> None:
    """Whether spconv may round float32 factors to TensorFloat-32 on a GPU."""
    constants, ops, algorithms = sparse().constants, sparse().pytorch.ops, sparse().algo
    changed = tf32 != constants.SPCONV_ALLOW_TF32
    constants.SPCONV_ALLOW_TF32 = tf32
    # spconv remembers a kernel for each shape, of either kind: let it choose anew.
    if changed and ops.CONV_CPP is not None:
        ops.CONV_CPP = algorithms.ConvTunerSimple(algorithms.CONV.all_desps)
