"""Mixed precision: the networks in a shorter number format, everything else in float32."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from common.base.devices import set_float32_precision
from stage2_train_student.students.student import StudentOutputs

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_kernels(precision: str, device: torch.device) -> None:
    """Let products on this process's GPU round to TF32 in that precision alone, and convolutions be the fastest."""
    set_float32_precision(tf32=precision == "tf32")
    # All maps of a run have one size, so that the fastest kernel for it is worth a search.
    torch.backends.cudnn.benchmark = device.type == "cuda"


def autocast(precision: str, device: torch.device, cached: bool = True) -> AbstractContextManager[None]:
    """Context in which convolutions and linear layers compute in `precision`; `cached`: weights are converted once."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=cached)


def in_float32(outputs: StudentOutputs) -> StudentOutputs:
    """The same outputs for losses to read; those that are float32 already are not copied."""
    classifier_input, pillar_logits = outputs.classifier_input, outputs.pillar_logits
    voxel_layers = outputs.voxel_layers.items()
    return replace(
        outputs,
        voxel_logits=outputs.voxel_logits.float(),
        layers={name: layer.float() for name, layer in outputs.layers.items()},
        voxel_layers={name: replace(layer, features=layer.features.float()) for name, layer in voxel_layers},
        classifier_input=None if classifier_input is None else classifier_input.float(),
        pillar_logits=None if pillar_logits is None else lambda pillars: pillar_logits(pillars).float(),
    )
