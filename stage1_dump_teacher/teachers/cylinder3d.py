"""Cylinder3D (Zhu et al., CVPR 2021) as a teacher: published checkpoints that answer for any batch.

Their voxel features are gathered into pillars, which a bird's-eye-view student can learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.base.errors import SettingsError
from common.base.weights_hash import weights_hash
from common.networks.cylinder3d import Cylinder3D, halve_sparse_network
from common.networks.published_weights import from_published, published_names, widths_of
from common.networks.sparse import set_sparse_precision
from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from common.targets.teacher import Precision, Teacher
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures
from common.training.wrapped_weights import load_weights


@dataclass(frozen=True)
class Cylinder3DTeacher(Teacher):
    """A frozen Cylinder3D in eval mode, without gradients, and the hash of its weights that act (no dead slices)."""

    name = "cylinder3d"

    model: Cylinder3D
    hash: str

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "Cylinder3DTeacher":
        """Load a published-layout checkpoint strictly and freeze it.

        Raises:
            CheckpointError: the file cannot be read safely, leaves a tensor unmatched, or holds NaN in a weight that
                acts.
        """
        published = load_weights(checkpoint, published_names(), "a Cylinder3D checkpoint")
        model = Cylinder3D(widths_of(published, str(checkpoint)), on_cpu=device.type == "cpu")
        weights = from_published(published, model, str(checkpoint))
        model.load_state_dict(weights, strict=True)
        model.requires_grad_(False)
        return cls(model.eval().to(device), weights_hash(weights))

    def in_precision(self, precision: Precision) -> "Cylinder3DTeacher":
        """See `Teacher`. Whether spconv uses TensorFloat-32 is one choice for the whole process, as PyTorch's own is,
        which `set_float32_precision` makes.
        """
        if precision != "float32" and not next(self.model.parameters()).is_cuda:
            raise SettingsError(f"precision={precision} needs a GPU (--device cuda); on a CPU choose precision=float32")
        set_sparse_precision(tf32=precision == "tf32")
        if precision == "float16":
            halve_sparse_network(self.model)
        return self

    def __str__(self) -> str:
        widths = self.model.widths
        return f"{self.hash[:12]}  Cylinder3D of base width {widths.base}, {widths.classes} classes"

    @property
    def classes(self) -> int:
        """Classes of its logits, "unlabelled" included."""
        return self.model.widths.classes

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each layer."""
        return self.model.widths.layers

    @torch.no_grad()
    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        """Targets of a batch on the teacher's device; with `voxel_features` those of the layers too."""
        outputs = self.model(batch, tuple(layers))
        pillars = {name: to_pillars(layer) for name, layer in outputs.layers.items()}
        return TeacherTargets(batch.voxels, outputs.logits, pillars, outputs.layers if voxel_features else {})


load_teacher = Cylinder3DTeacher.load


def to_pillars(layer: VoxelFeatures) -> PillarFeatures:
    """Maximum over height of a sparse layer's features (voxel-to-pillar aggregation, Jiang et al. 2023).

    Args:
        layer: voxels sorted by (scan, rho, phi, z).

    Returns:
        pillars sorted by (scan, rho, phi); one for each column that has an active voxel.
    """
    above = layer.voxels[:, :3]
    starts = torch.ones(len(above), dtype=torch.bool, device=above.device)
    starts[1:] = (above[1:] != above[:-1]).any(dim=1)
    voxel_pillar = torch.cumsum(starts, 0) - 1
    pillars = above[starts]
    return PillarFeatures(pillars, segment_max(layer.features, voxel_pillar, len(pillars)), layer.shape[:2])
