"""Cached targets against what the teacher says now."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.base.errors import StoreError
from common.scans.polar_grid import voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_files import ScanFiles
from common.scans.view import apply_view
from common.targets.store import ScanView, TargetStore
from common.targets.store.encoding import ArrayEncoding, decodable, encode
from common.targets.store.scan_file import LOGITS, PILLAR_FEATURES, VOXEL_FEATURES
from common.targets.teacher import Teacher
from common.targets.teacher_targets import TeacherTargets

TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "int8_channel": 5e-2, "int8_row": 5e-2}
"""Relative errors (Frobenius) that an encoding, and another device or number of threads, always explain."""

AGREEMENT = {"float32": 0.0, "tf32": 3e-2, "float16": 3e-2}
"""Relative errors that a teacher's precision explains. Measured on an H200, in the worst layer of a full-size teacher:
8.7e-3 in tf32, 9.4e-3 in float16."""

ENCODING_SLACK = 1.5
"""Where encoding the teacher's own answer loses more than that, an error of so many times that loss is explained."""


@dataclass(frozen=True)
class LiveError:
    """How far one array of a store is from the teacher.

    Attributes:
        array: which one.
        encoding: of it.
        error: relative error in the Frobenius norm; infinite where the coordinates differ.
        limit: the largest error that the encoding and the store's precision explain.
    """

    array: str
    encoding: ArrayEncoding
    error: float
    limit: float

    @property
    def explained(self) -> bool:
        """Whether encoding and precision explain the error."""
        return self.error <= self.limit


def compare_live(
    store: TargetStore, teacher: Teacher, files: ScanFiles, items: Iterable[ScanView], device: torch.device
) -> Iterator[list[LiveError]]:
    """Run the teacher again on some scan-views; yields the errors of each scan-view's arrays.

    Raises:
        StoreError: the store was made by another teacher, or the targets cannot be read.
        DataError: a scan cannot be read.
    """
    identity = store.identity
    if teacher.hash != identity.teacher_hash:
        raise StoreError(
            f"{store.location}: made by the teacher {identity.teacher_hash}, this one is {teacher.hash}. "
            "Compare with the checkpoint that the store was dumped with; of several, with each in the same order."
        )
    grid = identity.polar_grid
    for scan, index in items:
        points = files.points(scan)
        cached, view = store.read(scan, index, points, voxel_features=identity.voxel_features)
        voxelised = replace(voxelise(apply_view(points, view), grid), name=str(scan))
        batch = batch_scans([voxelised], grid.shape).to(device)
        live = teacher.targets(batch, list(identity.layers), identity.voxel_features).to("cpu")
        yield errors(store, cached, live)


def errors(store: TargetStore, cached: TeacherTargets, live: TeacherTargets) -> list[LiveError]:
    """Relative error of every array of one scan-view."""
    encoding, least = store.identity.encoding, AGREEMENT[store.identity.precision]
    found = [(LOGITS, encoding.logits, (cached.voxels, cached.logits), (live.voxels, live.logits))]
    for name, layer in cached.layers.items():
        other = live.layers[name]
        pairs = ((layer.pillars, layer.features), (other.pillars, other.features))
        found.append((f"{name}{PILLAR_FEATURES}", encoding.pillar_features, *pairs))
    for name, voxel_layer in cached.voxel_layers.items():
        voxels = live.voxel_layers[name]
        pairs = ((voxel_layer.voxels, voxel_layer.features), (voxels.voxels, voxels.features))
        found.append((f"{name}{VOXEL_FEATURES}", encoding.voxel_features, *pairs))
    return [
        LiveError(
            name,
            how,
            relative_error(*pair, *expected),
            max(explained_error(expected[1], how, name, encoding.steps), least),
        )
        for name, how, pair, expected in found
    ]


def explained_error(features: torch.Tensor, encoding: ArrayEncoding, name: str, steps: int) -> float:
    """The largest relative error that an encoding explains on these features: outliers cost one byte a lot."""
    decoded = decodable(encode(features, encoding, name, steps)).decode()
    difference = torch.linalg.vector_norm((decoded - features).double())
    loss = float(difference / torch.linalg.vector_norm(features.double()).clamp_min(1e-30))
    return max(TOLERANCES[encoding], ENCODING_SLACK * loss)


def relative_error(
    coordinates: torch.Tensor, features: torch.Tensor, expected_coordinates: torch.Tensor, expected: torch.Tensor
) -> float:
    """|features - expected| / |expected| in the Frobenius norm; infinite where the coordinates differ."""
    if not torch.equal(coordinates, expected_coordinates):
        return float("inf")
    difference = float(torch.linalg.vector_norm((features - expected).double()))
    size = float(torch.linalg.vector_norm(expected.double()))
    return difference / size if size else float(np.sign(difference))


def worst(scan_views: Iterable[list[LiveError]]) -> list[LiveError]:
    """The error of each array that comes nearest to its limit, or exceeds it most, over scan-views."""
    largest: dict[str, LiveError] = {}
    for found in scan_views:
        for error in found:
            before = largest.get(error.array)
            if before is None or error.error / error.limit > before.error / before.limit:
                largest[error.array] = error
    return list(largest.values())
