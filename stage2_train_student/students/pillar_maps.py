"""Bird's-eye-view maps [B, C, R, P] and rows of their pillars."""

from functools import cache

import torch

from common.scans.scan_batch import ScanBatch


def in_layout(maps: torch.Tensor) -> torch.Tensor:
    """Maps in the memory layout that their device wants: channels last for convolutions on CUDA and in bfloat16 tiles.

    Elsewhere on a CPU both are as fast, but PyTorch's channels-last batch norm adds up its statistics naively in
    float32: on sparse maps of 480x360 bins that moved an adapter's output by 5e-4. bfloat16 itself rounds ten times as
    much, and both layouts give the same error there.
    """
    last = maps.is_cuda or (maps.dtype == torch.bfloat16 and computes_bfloat16_tiles())
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@cache
def computes_bfloat16_tiles() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware (AMX)."""
    # PyTorch 2.6 cannot be asked.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def pillars_last(features: torch.Tensor) -> torch.Tensor:
    """A map [B, C, R, P] as rows of pillars, [B * R * P, C]; no copy for maps in channels-last layout."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def pillar_rows(batch: ScanBatch) -> torch.Tensor:
    """Row in `pillars_last` of each occupied pillar, int64 [pillars]."""
    radial, azimuth, _ = batch.grid_shape
    scan, rho, phi = batch.pillars.unbind(1)
    return (scan * radial + rho) * azimuth + phi
