"""What made a store: two stores with equal identities hold interchangeable targets."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from common.base.config import Settings, parse_settings
from common.scans.label_map import LabelMap
from common.scans.polar_grid import MOST_CELLS, PolarGrid
from common.scans.scan_id import ScanId, is_name
from common.scans.view import AnchorSet, View, ViewPolicy, anchor_view, draw_view
from common.targets.store.encoding import LARGEST_CODE, STEPS_PER_DEVIATION, ArrayEncoding
from common.targets.teacher import Precision, TeacherShare

FORMAT_VERSION = 2
LONGEST_HASH = 200
"""Characters of the teacher's hash: a SHA-256 has 64."""

COMPLETE = "complete"
"""Context of serialising in which nothing is left out."""

MOST_VIEWS, MOST_LAYERS, MOST_CHANNELS, MOST_TEACHERS = 1000, 256, 65_536, 64
"""Of each scan, of a teacher, of a layer, of an average: bounds of the work that a manifest can cause, beyond what
anyone dumps."""


TeacherHash = Annotated[str, Field(max_length=LONGEST_HASH)]

Steps = Annotated[int, Field(ge=1, le=LARGEST_CODE)]
StepsByLayer = Annotated[dict[str, Steps], Field(max_length=MOST_LAYERS)]
OTHERS = "others"
"""Names, where steps differ by layer, those of all layers that are not named."""


class TargetEncoding(Settings):
    """How arrays are written: `float32`, `float16`, `int8_channel` or `int8_row` (see `encoding.encode`).

    Attributes:
        pillar_features: of every layer.
        voxel_features: of every layer.
        logits: of every voxel.
        codec: `zstd` for small files, `lz4` for fast reading, `none`.
        level: of the codec.
        steps: of `int8_channel` in one standard deviation of a channel: fewer for smaller files, more for exact ones.
            One number, or numbers by layer, such as `{up0e: 3, others: 2}`.
    """

    pillar_features: ArrayEncoding = "float16"
    voxel_features: ArrayEncoding = "float16"
    logits: ArrayEncoding = "float16"
    codec: Literal["zstd", "lz4", "none"] = "zstd"
    level: int = Field(1, ge=1, le=9)
    steps: Annotated[
        Annotated[Steps, Tag("number")] | Annotated[StepsByLayer, Tag("by_layer")],
        Discriminator(lambda steps: "by_layer" if isinstance(steps, dict) else "number"),
    ] = STEPS_PER_DEVIATION

    @field_validator("steps")
    @classmethod
    def _of_every_layer(cls, steps: int | dict[str, int]) -> int | dict[str, int]:
        if isinstance(steps, dict) and OTHERS not in steps:
            raise ValueError(f"numbers by layer need one for all that are not named, such as {{up0e: 3, {OTHERS}: 2}}")
        return steps

    def steps_of(self, layer: str) -> int:
        """Steps of one layer, or of `logits`."""
        return self.steps if isinstance(self.steps, int) else self.steps.get(layer, self.steps[OTHERS])

    @property
    def fewest_steps(self) -> int:
        """Of any layer."""
        return self.steps if isinstance(self.steps, int) else min(self.steps.values())

    @model_serializer(mode="wrap")
    def _as_before_with_the_usual_steps(
        self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # Stores keep the identity, and its hash, that they had before the steps were a setting.
        values: dict[str, Any] = serialise(self)
        if self.steps == STEPS_PER_DEVIATION and info.context != COMPLETE:
            values.pop("steps", None)
        return values


class ViewSet(Settings):
    """The views that a store holds of every scan: view 0 is the identity, the others are drawn by the policy.

    Attributes:
        count: number of views of each scan; with anchors it is theirs, and may be left at 1.
        policy: how views 1, 2, ... are drawn.
        anchors: hold these views of every scan instead of drawn ones.
    """

    count: int = Field(1, ge=1, le=MOST_VIEWS)
    policy: ViewPolicy = ViewPolicy()
    anchors: AnchorSet | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ViewSet":
        if self.anchors is None:
            return self
        if self.anchors.count > MOST_VIEWS:
            raise ValueError(f"anchors: {self.anchors.count} views of each scan, at most {MOST_VIEWS} are possible")
        if self.count not in (1, self.anchors.count):
            raise ValueError(f"count: these anchors are {self.anchors.count} views, not {self.count}; leave count out")
        if self.policy != ViewPolicy():
            raise ValueError("policy: anchors are fixed views, none is drawn; leave the policy out")
        object.__setattr__(self, "count", self.anchors.count)
        return self

    @model_serializer(mode="wrap")
    def _as_before_without_anchors(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Stores of drawn views keep the identity, and its hash, that they had before there were anchors.
        values: dict[str, Any] = serialise(self)
        if self.anchors is None:
            del values["anchors"]
        return values

    def view(self, scan: ScanId, index: int, azimuth_bins: int) -> View:
        """View number `index` of a scan, on a grid of so many azimuth bins."""
        if self.anchors is not None:
            return anchor_view(self.anchors, index, azimuth_bins)
        return draw_view(self.policy, scan, index)

    def describe(self) -> str:
        """The views in one line."""
        if self.anchors is not None:
            flips, rotations = ", ".join(self.anchors.flips), self.anchors.rotations
            return f"{self.count} of each scan; anchors: flips {flips} in {rotations} rotations"
        return f"{self.count} of each scan" + (f"; {self.policy.describe()}" if self.count > 1 else "")


class GridIdentity(Settings):
    """A polar grid and its volume (metres, radians, metres)."""

    shape: tuple[int, int, int]
    minimum: tuple[float, float, float]
    maximum: tuple[float, float, float]

    @model_validator(mode="after")
    def _is_a_volume(self) -> "GridIdentity":
        if min(self.shape) < 1 or math.prod(self.shape) > MOST_CELLS:
            raise ValueError(f"shape: every size is at least 1, and there are at most {MOST_CELLS} cells")
        limits = zip(self.minimum, self.maximum, strict=True)
        if not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in limits):
            raise ValueError("minimum, maximum: the first is below the second along each axis, and both are finite")
        return self


class StoreIdentity(Settings):
    """Everything that decides what the targets in a store are.

    Attributes:
        format_version: of the files.
        teacher_hash: SHA-256 of the teacher's acting weights; of a teacher of one's own any text that names it and
            changes when it does. Of several teachers, or of several views averaged, it stands for all of `averaged`.
        grid: of the teacher, and of any student that reads the store.
        classes: class names by training class; the order of the logits.
        learning_map: raw label id to training class.
        layers: channels of each teacher layer that is kept.
        voxel_features: whether the layers' voxel features are kept beside their pillar features.
        encoding: of the arrays.
        views: of every scan.
        precision: that the teacher computed with.
        averaged: by their hashes, the teachers whose average the logits are, the one of the layers first; empty where
            they are what one teacher said of the stored view.
    """

    format_version: int = FORMAT_VERSION
    teacher_hash: TeacherHash
    grid: GridIdentity
    classes: list[str]
    learning_map: dict[int, int]
    layers: dict[str, int] = Field(max_length=MOST_LAYERS)
    voxel_features: bool
    encoding: TargetEncoding
    views: ViewSet
    precision: Precision = "float32"
    averaged: dict[TeacherHash, TeacherShare] = Field({}, max_length=MOST_TEACHERS)

    @model_serializer(mode="wrap")
    def _as_before_in_float32(
        self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # Stores in float32, and of one teacher's view, keep the identity, and its hash, that they had before.
        values: dict[str, Any] = serialise(self)
        if info.context != COMPLETE:
            for name, usual in (("precision", "float32"), ("averaged", {})):
                if values.get(name) == usual:
                    del values[name]
        return values

    @field_validator("layers")
    @classmethod
    def _are_layers(cls, layers: dict[str, int]) -> dict[str, int]:
        # Names of layers become names of arrays, and of their members in zip files.
        wrong = [name for name, channels in layers.items() if not is_name(name) or not 0 < channels <= MOST_CHANNELS]
        if wrong:
            raise ValueError(f"{wrong[0]!r:.100} with {layers[wrong[0]]} channels cannot be a layer")
        return layers

    @classmethod
    def of(
        cls,
        teacher_hash: str,
        grid: PolarGrid,
        label_map: LabelMap,
        layers: dict[str, int] | None = None,
        voxel_features: bool = False,
        encoding: TargetEncoding = TargetEncoding(),
        views: ViewSet = ViewSet(),
        precision: Precision = "float32",
        averaged: dict[str, TeacherShare] | None = None,
    ) -> "StoreIdentity":
        """The identity of a store that is about to be written: logits of the scans as they are, unless more is said.

        Raises:
            SettingsError: no store can have one of these; says which.
        """
        values = {
            "teacher_hash": teacher_hash,
            "grid": grid_identity(grid),
            "classes": label_map.names,
            "learning_map": label_map.learning_map,
            "layers": layers or {},
            "voxel_features": voxel_features,
            "encoding": encoding,
            "views": views,
            "precision": precision,
            "averaged": averaged or {},
        }
        return parse_settings(cls, values, "the identity of a store")

    @property
    def polar_grid(self) -> PolarGrid:
        """The grid, to put scans on it."""
        return PolarGrid(self.grid.shape, self.grid.minimum, self.grid.maximum)

    def view(self, scan: ScanId, index: int) -> View:
        """View number `index` of a scan, to be applied before the teacher sees it; the same each time."""
        return self.views.view(scan, index, self.grid.shape[1])

    @property
    def described(self) -> dict[str, Any]:
        """Every field as a plain value, to compare with another store's."""
        return self.model_dump(mode="json", context=COMPLETE)

    @property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def grid_identity(grid: PolarGrid) -> GridIdentity:
    """A grid as it stands in a manifest.

    Raises:
        SettingsError: no store can have it.
    """
    values = {"shape": grid.shape, "minimum": grid.minimum, "maximum": grid.maximum}
    return parse_settings(GridIdentity, values, "the grid of a store")


def differences(
    stored: Any, expected: Any, name: str = "", sides: tuple[str, str] = ("the store", "this run")
) -> list[str]:
    """Field-by-field differences of two JSON-like values, one line each; `sides` is what the two are called there."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        return [
            line
            for key in dict.fromkeys([*stored, *expected])
            for line in differences(stored.get(key), expected.get(key), f"{name}.{key}" if name else str(key), sides)
        ]
    return [] if stored == expected else [f"  {name}: {sides[0]} has {stored!r}, {sides[1]} has {expected!r}"]
