"""Supervoxels of PVKD (Hou et al., CVPR 2022): blocks of the grid, drawn more often where rare classes are and far off.

The weight of a block is 1 / f * d / R * 1 / (number of blocks): d the distance of its outer arc from the sensor, R that
of the grid's. The paper was not at hand. Remembered, and not checked: f = 4 exp(-2 n) + 1 with n its voxels of minority
classes, those with at most 1 % of all points, so that f falls from 5 to nearly 1 with the first few of them. Another
account has f as the share of the block's rarest class. Secondary sources confirm the blocks of 120 x 60 x 8 bins, that
rare classes and distance raise the weight, and that each block keeps a fixed number of points and of voxels; how many
blocks, points and voxels they do not say.
"""

import math

import torch

from common.scans.label_map import CLASS_WEIGHT_OFFSET
from common.scans.scan_batch import ScanBatch

MINORITY_SHARE = 0.01
"""Classes with a share of all points up to this are minority classes."""


def minority_classes(class_weights: torch.Tensor) -> torch.Tensor:
    """Which classes are rare, bool [classes], from their loss weights 1 / (share + 0.001); "unlabelled" is none."""
    rare = class_weights >= 1.0 / (MINORITY_SHARE + CLASS_WEIGHT_OFFSET)
    rare[0] = False
    return rare


def blocks_of(grid_shape: tuple[int, int, int], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Blocks along rho, phi and z; the last ones may be cut by the grid's end."""
    radial, azimuth, height = (-(-bins // step) for bins, step in zip(grid_shape, size, strict=True))
    return radial, azimuth, height


def block_of_voxel(batch: ScanBatch, size: tuple[int, int, int]) -> torch.Tensor:
    """The block of each occupied voxel, counted through all scans, int64 [V]."""
    _, azimuth, height = shape = blocks_of(batch.grid_shape, size)
    scan, *bins = batch.voxels.unbind(1)
    rho, phi, z = (torch.div(place, step, rounding_mode="floor") for place, step in zip(bins, size, strict=True))
    return scan * math.prod(shape) + (rho * azimuth + phi) * height + z


def block_weights(
    batch: ScanBatch, block: torch.Tensor, minority: torch.Tensor, size: tuple[int, int, int]
) -> torch.Tensor:
    """How much each block of each scan weighs in the draw, float32 [B, blocks]; 0 where it holds no voxel.

    Distances are counted in bins, which is the distance itself where the volume begins at the sensor.

    Args:
        batch: the scans.
        block: int64 [V], of each voxel, from `block_of_voxel`.
        minority: bool [V], whether each voxel is of a minority class.
        size: of a block in bins.
    """
    radial, azimuth, height = blocks_of(batch.grid_shape, size)
    count = radial * azimuth * height
    voxels = torch.bincount(block, minlength=batch.scans * count).view(batch.scans, count)
    rare = torch.bincount(block, minority.to(torch.float32), minlength=batch.scans * count).view(batch.scans, count)
    frequency = 4.0 * torch.exp(-2.0 * rare) + 1.0
    outer = (torch.arange(radial, device=block.device) + 1.0) * size[0] / batch.grid_shape[0]
    distance = outer.clamp(max=1.0).repeat_interleave(azimuth * height)
    return (distance / frequency / count * (voxels > 0)).float()


def drawn_blocks(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` blocks of each scan, none twice, with probabilities in proportion to their weights [B, blocks].

    Fewer are drawn where fewer have a weight. Returns int64 [B * blocks]: the number of each drawn block among the
    count * B possible draws, -1 for all others.
    """
    scans, blocks = weights.shape
    # The largest of weight / exponential draws are a sample without replacement (Efraimidis and Spirakis, 2006).
    keys = weights / torch.empty_like(weights).exponential_()
    best, chosen = keys.topk(min(count, blocks), dim=1)
    first = torch.arange(scans, device=weights.device)[:, None]
    numbers = first * count + torch.arange(chosen.shape[1], device=weights.device)
    draws = torch.full((scans * blocks,), -1, device=weights.device)
    draws[(first * blocks + chosen).flatten()] = torch.where(best > 0, numbers, -1).flatten()
    return draws


def kept_rows(draw: torch.Tensor, minority: torch.Tensor, draws: int, limit: int) -> torch.Tensor:
    """Points, or voxels, of each drawn block that are compared: at random, those of minority classes first.

    Args:
        draw: int64 [N], the draw that each lies in, -1 for none.
        minority: bool [N].
        draws: how many there are.
        limit: kept of one block.

    Returns:
        int64 [draws, limit], rows; -1 fills a block that has fewer.
    """
    inside = (draw >= 0).nonzero()[:, 0]
    draw, minority = draw[inside], minority[inside]
    # Random numbers in 0..1, those of other classes behind them in 1..2; then, in this order, draw by draw.
    order = (torch.rand(len(draw), device=draw.device) + (~minority).float()).argsort()
    order = order[draw[order].argsort(stable=True)]
    counts = torch.bincount(draw, minlength=draws)
    rank = torch.arange(len(order), device=draw.device) - (counts.cumsum(0) - counts)[draw[order]]
    kept, rank = order[rank < limit], rank[rank < limit]
    rows = torch.full((draws, limit), -1, device=draw.device)
    rows[draw[kept], rank] = inside[kept]
    return rows
