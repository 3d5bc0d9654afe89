"""Cylinder3D as a student: the teacher's network with fewer channels (the pair of PVKD, Hou et al., CVPR 2022)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from common.base.config import Settings, parse_settings
from common.base.errors import CheckpointError, SettingsError, TrainingError
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import from_published, published_names, to_published, widths_of
from common.networks.sparse import use_algorithm_of
from common.scans.scan_batch import ScanBatch
from common.training.wrapped_weights import load_weights
from stage2_train_student.students.student import Student, StudentOutputs, StudentSettings

VOXEL_LAYERS = ("vox", "up1e", "up0e")
"""Layers with a row for each occupied voxel."""


class Cylinder3DOptions(Settings):
    """Channels; the defaults are half of those in PVKD's settings for its full network (256, 32 and 32).

    Attributes:
        base: width m of the first block; the others are 2m to 16m wide.
        point_channels: output of the point network.
        voxel_channels: compressed voxel features that enter the sparse network.
    """

    base: int = Field(16, ge=1)
    point_channels: int = Field(128, ge=1)
    voxel_channels: int = Field(16, ge=1)


class Cylinder3DStudent(Student):
    """Cylinder3D of any width. It has voxel layers, no maps: a teacher reaches it through logits and affinities.

    Its files of weights have the published layout, so that each is a teacher's checkpoint as well.
    """

    name = "cylinder3d"

    def __init__(self, widths: TeacherWidths) -> None:
        super().__init__()
        self.network = Cylinder3D(widths)

    @classmethod
    def build(cls, settings: StudentSettings, grid_shape: tuple[int, int, int], classes: int) -> "Cylinder3DStudent":
        """A student with fresh weights, see `Student`; its channels are the settings' `options`.

        Raises:
            SettingsError: the options are not those of `Cylinder3DOptions`, or there is no spconv here.
        """
        options = parse_settings(Cylinder3DOptions, settings.options, "student.options")
        return cls(TeacherWidths(**options.model_dump(), classes=classes))

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Refused: spconv's layers do not compile."""
        raise SettingsError("compile: the student cylinder3d cannot be compiled; set compile=false")

    def forward(self, batch: ScanBatch) -> StudentOutputs:
        """Logits of the batch's occupied voxels, and in training the features of `VOXEL_LAYERS`.

        Raises:
            SettingsError: under autocast, which this network does not know.
            TrainingError: there is no scan, as in a process that has no share of a batch.
        """
        device = batch.voxels.device
        if not batch.scans:
            raise TrainingError(
                "the student cylinder3d needs a scan in every process, and this batch has fewer; train on a number of "
                "scans that leaves no smaller batch at the end of an epoch, or in fewer processes"
            )
        if torch.is_autocast_enabled(device.type):
            raise SettingsError("precision: the student cylinder3d computes in float32; set precision=float32 or tf32")
        use_algorithm_of(self.network, device)
        outputs = self.network(batch, VOXEL_LAYERS if self.training else ())
        return StudentOutputs(outputs.logits, voxel_layers=outputs.layers)

    def published(self) -> dict[str, torch.Tensor]:
        return to_published(self.network)

    def load_published(self, path: Path, what: str) -> None:
        """See `Student`.

        Raises:
            CheckpointError: also where its channels are others than those of this student; names them.
        """
        published = load_weights(path, published_names(), what)
        found, own = asdict(widths_of(published, str(path))), asdict(self.network.widths)
        if found != own:
            differing = [name for name in own if found[name] != own[name]]
            wrong = [f"{name}: {found[name]} in the file, {own[name]} in the settings" for name in differing]
            options = ", ".join(f"{name}: {found[name]}" for name in Cylinder3DOptions.model_fields)
            raise CheckpointError(
                f"{path}: a Cylinder3D of other channels or classes; nothing was loaded.\n  {'; '.join(wrong)}\n"
                f"Set student.options={{{options}}}, and the dataset that it was trained on."
            )
        self.network.load_state_dict(from_published(published, self.network, str(path)), strict=True)
