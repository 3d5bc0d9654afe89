"""Affinity distillation of PVKD between voxels: how alike the features of a block's voxels are to each other."""

import torch

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets, VoxelFeatures
from common.training.predictor import most_likely_class
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.supervoxels import (
    block_of_voxel,
    block_weights,
    drawn_blocks,
    kept_rows,
    minority_classes,
)
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.students.student import StudentOutputs


class VoxelAffinity(Term):
    """Mean of `affinity_error` over blocks that are drawn of each scan, see `supervoxels` (Hou et al., CVPR 2022).

    Reads voxel features of a layer with a row for each occupied voxel: `up1e`, the output of the encoder and decoder
    before the directional reconstruction block, which secondary sources name. Widths may differ, since only
    similarities are compared. Rare are the classes of the labels and, where a voxel has none, of the teacher.
    Each affinity term draws blocks of its own, where the paper may share them; what is expected is the same.
    """

    name = "voxel_affinity"
    voxel_features = True
    minority: torch.Tensor

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.pairs, self.supervoxels = context.settings.pairs_of(self.name), context.settings.supervoxels
        self.register_buffer("minority", minority_classes(context.class_weights), persistent=False)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """The value, a scalar; 0 where no block can be drawn.

        Raises:
            SettingsError: teacher or student has no such layer at the grid's resolution.
        """
        rows = self.drawn_rows(targets, batch)
        drawn = (rows >= 0).any(dim=1)
        values = []
        for pair in self.pairs:
            student = grid_features(outputs.voxel_layers, pair.student, batch, "student")
            teacher = grid_features(targets.voxel_layers, pair.teacher, batch, "teacher")
            errors = affinity_error(student, teacher.to(student.dtype), rows)
            values.append(pair.weight * errors.sum() / drawn.sum().clamp(min=1))
        return {self.name: processes.mean(torch.stack(values).sum(), drawn.sum())}

    def drawn_rows(self, targets: TeacherTargets, batch: ScanBatch) -> torch.Tensor:
        """Voxel of each entry that is compared, int64 [draws, entries of a draw], -1 for none."""
        classes = torch.where(batch.voxel_labels > 0, batch.voxel_labels, most_likely_class(targets.logits))
        minority, size, count = self.minority[classes], self.supervoxels.size, self.supervoxels.count
        block = block_of_voxel(batch, size)
        draws = drawn_blocks(block_weights(batch, block, minority, size), count)
        return self.kept(draws[block], minority, batch.scans * count, batch)

    def kept(self, draw: torch.Tensor, minority: torch.Tensor, draws: int, batch: ScanBatch) -> torch.Tensor:
        """The voxels to compare, from the draw of each voxel, see `kept_rows`."""
        return kept_rows(draw, minority, draws, self.supervoxels.voxels)


def grid_features(layers: dict[str, VoxelFeatures], name: str, batch: ScanBatch, whose: str) -> torch.Tensor:
    """Features of a layer, one row for each occupied voxel, float [V, C].

    Raises:
        SettingsError: there is no such layer, or it has another resolution.
    """
    layer = layers.get(name)
    if layer is None:
        raise SettingsError(
            f"affinity: the {whose} has no voxel features of a layer {name} (it has: {', '.join(layers) or 'none'}); "
            "pair others (distillation.pairs), or set the weights of point_affinity and voxel_affinity to 0"
        )
    if layer.shape != batch.grid_shape or len(layer.features) != len(batch.voxels):
        raise SettingsError(
            f"affinity: the {whose}'s layer {name} has {'x'.join(map(str, layer.shape))} bins, not the grid's voxels; "
            "choose a layer of the grid's resolution, such as up0e (distillation.pairs)"
        )
    return layer.features


def affinity_error(student: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the cosine similarities of every pair in each block, float [blocks].

    A block with fewer rows than others is filled up with features of zero, as the paper is remembered to do: they are
    as alike to everything in both networks, and the mean is over all pairs.

    Args:
        student: float [V, C].
        teacher: float [V, D].
        rows: int64 [blocks, N], -1 for none.
    """
    found = (rows >= 0)[..., None]
    # Under autocast, products would be those of a shorter format.
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (unit_rows(features)[rows.clamp(min=0)] * found for features in (student, teacher))
        return (student @ student.mT - teacher @ teacher.mT).square().mean(dim=(1, 2))


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; a row of zeros stays, with the gradient of a row of length 1 instead of an infinite one."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / torch.where(length > 0, length, 1.0)
