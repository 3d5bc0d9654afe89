"""What a scan file says about itself: where its targets come from, and which arrays it holds."""

import hashlib
import math
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Strict, ValidationError, field_validator

from common.scans.view import View
from common.targets.store.chunks import MemberError
from common.targets.store.encoding import ArrayEncoding
from common.targets.store.members import ArraySource

FromList = Strict(False)
"""JSON has lists only."""


class StoredFeatures(BaseModel):
    """One array of features in a scan file: resolution of its layer, (R, P) or (R, P, Z), and its encoding."""

    model_config = ConfigDict(strict=True)

    shape: Annotated[tuple[int, ...], FromList]
    encoding: ArrayEncoding

    def fits(self, grid_shape: tuple[int, ...]) -> bool:
        """Whether a layer can have this resolution on a grid: as many axes, and no more bins along each."""
        axes = len(self.shape) == len(grid_shape)
        return axes and all(1 <= size <= most for size, most in zip(self.shape, grid_shape, strict=True))


class FileLayout(BaseModel):
    """Which arrays a scan file has.

    Attributes:
        grid_shape: (R, P, Z) of the grid.
        features: by name of the array.
    """

    model_config = ConfigDict(strict=True)

    grid_shape: Annotated[tuple[int, int, int], FromList]
    features: dict[str, StoredFeatures]


class FileAttributes(FileLayout):
    """All that a scan file of a store says about itself: its layout, and what its targets are.

    Attributes:
        scan: which scan, as `00/000000`.
        view_index: number of the view.
        view: its parameters.
        scan_sha256: hash of the scan's points.
        teacher_hash: of the teacher's acting weights.
        identity_hash: of the store's identity; None in files that were written before they had it.
    """

    scan: str
    view_index: int
    view: Annotated[View, Strict(False)]
    scan_sha256: str
    teacher_hash: str
    identity_hash: str | None = None

    @field_validator("view")
    @classmethod
    def _finite(cls, view: View) -> View:
        if not all(map(math.isfinite, (view.rotation, view.scale, *view.translation))):
            raise ValueError("a parameter of the view is infinite")
        return view


Attributes = TypeVar("Attributes", FileLayout, FileAttributes)


def attributes_of(members: ArraySource, kind: type[Attributes]) -> Attributes:
    """The attributes of a scan file.

    Raises:
        MemberError: they are not those of a scan file; names the field.
    """
    try:
        return kind.model_validate(members.attributes)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        text = f"{'.'.join(map(str, problem['loc'])):.100}: {problem['msg']}"
        raise MemberError("zarr.json", f"is not the metadata of a scan file ({text})") from error


def scan_hash(points: np.ndarray) -> str:
    """SHA-256 of a scan's points as stored on disk."""
    return hashlib.sha256(np.ascontiguousarray(points).data).hexdigest()
