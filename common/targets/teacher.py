"""A teacher: what stage one dumps and what stage two asks where no store answers for it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from common.base.config import Settings
from common.base.errors import SettingsError
from common.scans.label_map import LabelMap
from common.scans.scan_batch import ScanBatch
from common.scans.scan_id import ScanId
from common.scans.view import ViewPolicy
from common.targets.teacher_targets import TeacherTargets

Precision = Literal["float32", "tf32", "float16"]
"""What a teacher computes with: IEEE float32; float32 whose factors a GPU rounds to TensorFloat-32; float16 summed in
float32."""


Weight = Annotated[float, Field(gt=0, le=1e6)]
"""Of a teacher among several; only ratios count."""

ViewsAveraged = Annotated[int, Field(ge=1, le=1000)]
"""Bounded, since a manifest could otherwise cause any amount of work."""


class TeacherShare(Settings):
    """What a teacher has to do with targets that are an average of probabilities.

    Attributes:
        weight: of its probabilities; only ratios count.
        views: that its probabilities are averaged over: the stored one and others, made from it.
        policy: how the others are drawn; null for none.
    """

    weight: Weight = 1.0
    views: ViewsAveraged = 1
    policy: ViewPolicy | None = None


class Teacher(ABC):
    """A frozen network that says something about the voxels and pillars of scans.

    Attributes:
        name: that the setting `teacher` gives; the name of its file among the teachers.
        hash: SHA-256 of the weights that act.
    """

    name: ClassVar[str]
    hash: str

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "Teacher":
        """The teacher of a checkpoint, on a device.

        Raises:
            CheckpointError: it does not load completely.
        """

    def in_precision(self, precision: Precision) -> "Teacher":
        """This teacher, which is not to be used any more, computing with other numbers.

        Raises:
            SettingsError: it cannot, or not on its device.
        """
        if precision != "float32":
            raise SettingsError(f"precision={precision}: the teacher '{self.name}' computes in float32 only")
        return self

    @property
    def shares(self) -> dict[str, TeacherShare]:
        """By their hashes, the teachers whose average this one is; none where it is no average."""
        return {}

    def for_dataset(self, label_map: LabelMap) -> "Teacher":
        """This teacher, answering in the classes of a dataset.

        Raises:
            SettingsError: it has others.
        """
        if self.classes != len(label_map.classes):
            raise SettingsError(
                f"the teacher has {self.classes} classes, dataset '{label_map.name}' has {len(label_map.classes)}. "
                "Choose the dataset that the teacher was trained on (setting dataset)."
            )
        return self

    def check_scan(self, scan: ScanId, points: int) -> None:  # noqa: B027 - most answer for any scan
        """Refuse a scan of so many points that it has no answer for; a network has one for any.

        Raises:
            DataError: says why.
        """

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many, "unlabelled" included."""

    @property
    @abstractmethod
    def channels(self) -> dict[str, int]:
        """Channels of the pillar features, by the name of each layer that it has."""

    @abstractmethod
    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        """What it says about a batch, on the batch's device, with the pillar features of some layers.

        With `voxel_features` those of the layers' voxels too; a teacher that has none leaves them out.
        """

    def __str__(self) -> str:
        return f"{self.hash[:12]}  {self.name}"


TeacherLoader = Callable[[str, Path, torch.device], Teacher]
"""Loads a kind of teacher from a checkpoint onto a device. The program hands it to those commands of stage two that run
a teacher."""


def layer_channels(teacher: Teacher, layers: Iterable[str]) -> dict[str, int]:
    """Channels of some of a teacher's layers, by name.

    Raises:
        SettingsError: it has no such layer.
    """
    known = teacher.channels
    unknown = [name for name in layers if name not in known]
    if unknown:
        choices = f"choose from {', '.join(known)}" if known else "it has logits only"
        raise SettingsError(f"the teacher has no layer '{unknown[0]}'; {choices}")
    return {name: known[name] for name in layers}
