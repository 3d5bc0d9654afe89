"""What stage one caches, as settings; needs neither the teacher nor spconv."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.base.config import Settings
from common.base.config_files import DatasetFile
from common.scans.dataset import GridSettings
from common.scans.sequence_names import Names
from common.targets.store import TargetEncoding, ViewSet
from common.targets.store.identity import OTHERS
from common.targets.store.scan_file import LOGITS
from common.targets.teacher import Precision, ViewsAveraged, Weight

PROFILES: dict[str, dict[str, Any]] = {
    "full": {
        "voxel_features": True,
        "encoding": {"pillar_features": "float16", "voxel_features": "int8_channel", "logits": "float16"},
    },
    "train": {
        "voxel_features": False,
        "encoding": {
            "pillar_features": "int8_channel",
            "voxel_features": "int8_channel",
            "logits": "int8_row",
            "steps": {"up0e": 3, OTHERS: 2},
        },
    },
}
"""What each profile keeps; `custom` says it itself."""


class DumpSettings(Settings):
    """What stage one caches. See `configs/teachers/` for commented examples.

    Attributes:
        dataset: YAML file with classes, splits and label map.
        teacher: kind of teacher: `cylinder3d`, or a class of your own such as `my_package.my_file:MyTeacher`.
        splits: splits or sequences to dump.
        grid: the grid and volume that the teacher was trained on.
        layers: teacher layers to keep.
        profile: what is kept and how: `full`, voxel features too; `train`, what a student reads, in one byte; `custom`,
            as `voxel_features` and `encoding` say. These two, where given, win over the profile.
        precision: that the teacher computes with: `float32` (IEEE); on a GPU also `tf32`, or `float16` (the sparse
            network, with sums in float32). Part of what a store is.
        voxel_features: keep voxel features beside pillar targets and logits; the affinity terms of PVKD read them.
        encoding: of the arrays.
        views: of every scan.
        views_averaged: of every scan-view that the teacher's probabilities are averaged over: itself and others, made
            from it by flips, rotations and scales; as many passes of the teacher. Layers are those of the view itself.
        teacher_weights: of several teachers, in their order; only ratios count. By default all weigh the same.
        on_bad_scan: `stop` at a scan that cannot be used, or `skip` it, record why in the store and list it at the end.
        batch_size: scan-views of one pass of the teacher; by default 4 on a GPU, where a pass of one is over before the
            next is launched, and 1 on a CPU.
        read_ahead: batches that are read and voxelised while the teacher works; at least one for each reader.
        readers: threads that read and voxelise; by default 2 for a GPU, 1 for a CPU.
        writers: threads that encode, compress and write; 0 to do it between two passes of the teacher. By default up to
            8 where the teacher is on a GPU or the store is remote, as processors allow, and otherwise 0: on a CPU the
            teacher uses all processors itself.
        processes: whether processes read and write for these threads, whose Python code would hold up the launches of
            a GPU's teacher. By default where the teacher is on a GPU and the store in a folder, if the processes can
            share enough memory.
    """

    config_folder: ClassVar[str] = "teachers"

    dataset: DatasetFile
    teacher: str = "cylinder3d"
    splits: Names = ["train", "val"]
    grid: GridSettings = GridSettings()
    layers: list[str] = Field(["down1c", "down3c", "up4e", "up2e", "up0e"], min_length=1)
    profile: Literal["full", "train", "custom"] = "full"
    precision: Precision = "float32"
    voxel_features: bool
    encoding: TargetEncoding
    views: ViewSet = ViewSet()
    views_averaged: ViewsAveraged = 1
    teacher_weights: list[Weight] = []
    on_bad_scan: Literal["stop", "skip"] = "stop"
    batch_size: int | None = Field(None, ge=1)
    read_ahead: int = Field(2, ge=1)
    readers: int | None = Field(None, ge=1)
    writers: int | None = Field(None, ge=0)
    processes: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_profile(cls, values: dict[str, Any]) -> dict[str, Any]:
        profile, said = values.get("profile", "full"), values.get("encoding") or {}
        # What cannot be used is refused afterwards, once and under its own name.
        kept = {} if profile == "custom" else PROFILES[profile if profile in [*PROFILES] else "full"]
        if not isinstance(said, dict):
            return {**kept, **values}
        encoding = {**kept.get("encoding", {}), **said}
        return {**kept, **values, **({"encoding": encoding} if encoding else {})}

    @model_validator(mode="after")
    def _has_layers_of_steps(self) -> Self:
        check_layers_of_steps(self.encoding, self.layers)
        return self


def check_layers_of_steps(encoding: TargetEncoding, layers: Sequence[str]) -> None:
    """Refuse steps of a layer that is not kept; those of a profile are for whichever layers there are.

    Raises:
        ValueError: there are; names it.
    """
    usual = [kept["encoding"].get("steps") for kept in PROFILES.values()]
    if isinstance(encoding.steps, int) or encoding.steps in usual:
        return
    unknown = [name for name in encoding.steps if name not in (OTHERS, LOGITS, *layers)]
    if unknown:
        raise ValueError(f"encoding.steps: no layer {unknown[0]!r} is kept; the layers are {', '.join(layers)}")
