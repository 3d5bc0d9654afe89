"""Mixed precision: the networks in a shorter number format, everything else in float32."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from stage2_train_student.students.student import StudentOutputs

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
