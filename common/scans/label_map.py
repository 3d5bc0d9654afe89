"""Classes of a dataset: names, colours, and the map between raw label ids and training classes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from common.base.config import Settings, load_settings
from common.base.errors import DataError
from common.scans.sequence_names import Sequences, folder_name

UNKNOWN = 255
Byte = Annotated[int, Field(ge=0, le=255)]
RawId = Annotated[int, Field(ge=0, le=0xFFFF)]
CLASS_WEIGHT_OFFSET = 0.001


class ClassInfo(Settings):
    """A training class: its name in tables, its id in prediction files, and red, green and blue of pictures."""

    name: str
    raw_id: RawId
    colour: tuple[Byte, Byte, Byte]


class LabelMap(Settings):
    """Training classes of a dataset; class 0 is unlabelled and ignored.

    Attributes:
        name: name of the dataset.
        format: of its files: `semantic_kitti`, or a class of your own such as `my_package.my_file:MyFiles`.
        options: of the format, see its class.
        classes: by training class, 0 first.
        learning_map: raw id (0..65535) to training class.
        content: share of all training points by raw id.
        splits: sequences of each split, as folder names.
        volumes: named volumes that published checkpoints of this dataset were trained on; empty for any.
        absent_classes: what the benchmark's mIoU makes of a class that occurs neither in the ground truth nor among the
            predictions: an IoU of `zero`, or `left_out`. Points of class 0 never count.
    """

    config_folder: ClassVar[str] = "datasets"

    name: str
    format: str = "semantic_kitti"
    options: dict[str, Any] = {}
    classes: list[ClassInfo] = Field(min_length=2, max_length=UNKNOWN - 1)
    learning_map: dict[RawId, int]
    content: dict[int, float]
    splits: dict[str, Sequences]
    volumes: list[str] = []
    absent_classes: Literal["zero", "left_out"] = "zero"

    @model_validator(mode="after")
    def _classes_agree(self) -> "LabelMap":
        for raw, label in self.learning_map.items():
            if not 0 <= label < len(self.classes):
                raise ValueError(f"learning_map: raw id {raw} maps to class {label}, which is not listed in classes")
        for label, info in enumerate(self.classes):
            if self.learning_map.get(info.raw_id) != label:
                raise ValueError(f"classes: raw_id {info.raw_id} of '{info.name}' does not map back to class {label}")
        missing = sorted(set(self.learning_map) - set(self.content))
        if missing:
            raise ValueError(f"content: no share is given for raw ids {missing}; see polar-distill class-frequencies")
        return self

    def to_training(self, raw: np.ndarray, source: str | Path = "labels") -> np.ndarray:
        """Raw labels uint32 [N] (instance in the high 16 bits) to training classes uint8 [N].

        Raises:
            DataError: a raw id is not in the learning map; names `source` and the ids.
        """
        table = np.full(0x10000, UNKNOWN, np.uint8)
        table[list(self.learning_map)] = list(self.learning_map.values())
        semantic = raw & 0xFFFF
        labels = table[semantic]
        if (labels == UNKNOWN).any():
            unknown = np.unique(semantic[labels == UNKNOWN]).tolist()
            raise DataError(
                f"{source}: raw label ids {unknown} are not in the learning map of dataset '{self.name}'. "
                "Add them to learning_map in the dataset's YAML file, or repair the label file."
            )
        return labels

    def to_raw(self, labels: np.ndarray) -> np.ndarray:
        """Training classes [N] to the raw ids of prediction files, uint32 [N]."""
        return np.array([info.raw_id for info in self.classes], np.uint32)[labels]

    @property
    def names(self) -> list[str]:
        """Class names by training class."""
        return [info.name for info in self.classes]

    def class_shares(self) -> np.ndarray:
        """Share of all training points by training class, float64 [C]."""
        shares = np.zeros(len(self.classes))
        for raw, label in self.learning_map.items():
            shares[label] += self.content[raw]
        return shares

    def class_weights(self) -> np.ndarray:
        """Loss weight of each class, 1 / (share + 0.001), float32 [C] (PolarNet's and Jiang et al.'s choice)."""
        return (1.0 / (self.class_shares() + CLASS_WEIGHT_OFFSET)).astype(np.float32)

    def sequences(self, names: Iterable[str]) -> list[str]:
        """Sequences of splits (`train`, `val`, `test`), and those named themselves (`00`, `8`); in order, each once."""
        found: list[str] = []
        for name in names:
            found += self.splits.get(name, [folder_name(name)])
        return list(dict.fromkeys(found))

    def split_of(self, sequence: str, preferred: Iterable[str] = ()) -> str | None:
        """A split that has a sequence: of those preferred, otherwise the first; None where none has it."""
        return next((name for name in (*preferred, *self.splits) if sequence in self.splits.get(name, ())), None)


def load_label_map(path: str | Path) -> LabelMap:
    """Read a dataset's classes from its YAML file."""
    return load_settings(LabelMap, path)
