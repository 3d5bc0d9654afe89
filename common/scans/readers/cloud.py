"""A point cloud as a file has it: columns with names."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.base.errors import DataError


@dataclass(frozen=True)
class Cloud:
    """Columns of a point cloud, in the order and the types of the file.

    Attributes:
        source: the file, and which message of a bag, for messages.
        columns: [N] each, by name. They may be views of one array.
    """

    source: str
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> np.ndarray:
        """A column, [N].

        Raises:
            DataError: there is none of that name; lists those that there are.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.source}: no column '{name}'; the columns are {', '.join(self.columns) or 'none'}. Name "
                "the right one in options of the dataset's YAML file, or with --file-option reflectance=NAME (null "
                "where there is none)."
            )
        return self.columns[name]

    def points(self, reflectance: str | None = "intensity", scale: float = 1.0) -> np.ndarray:
        """Points as networks take them, float32 [N, 4]: x, y, z, and a column times `scale`, or 0 without one.

        Raises:
            DataError: the cloud is empty, or a column is missing or not of numbers.
        """
        if not len(self):
            raise DataError(f"{self.source}: the scan is empty (no point). Restore the file or exclude the scan.")
        points = np.zeros((len(self), 4), np.float32)
        names = ("x", "y", "z") if reflectance is None else ("x", "y", "z", reflectance)
        # What float32 cannot hold becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            for place, name in enumerate(names):
                column = self.column(name)
                if column.dtype.kind not in "iufb" or column.ndim > 1:
                    several = list(column.shape[1:]) or ""
                    raise DataError(f"{self.source}: the column '{name}' holds {column.dtype}{several}, not numbers.")
                points[:, place] = column if name != reflectance or scale == 1 else column * np.float64(scale)
        return points
