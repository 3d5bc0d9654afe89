"""Cached targets against what the teacher says now."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from common.base.errors import StoreError
from common.scans.polar_grid import voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_files import ScanFiles
from common.scans.view import apply_view
from common.targets.store import ScanView, TargetEncoding, TargetStore
from common.targets.store.encoding import ArrayEncoding, decodable, encode
from common.targets.store.scan_file import LOGITS, PILLAR_FEATURES, VOXEL_FEATURES, layer_of
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
    """Run the teacher again on some scan-views; yields the errors of each one's arrays.

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
        yield list(errors(store, cached, live))


def errors(store: TargetStore, cached: TeacherTargets, live: TeacherTargets) -> Iterator[LiveError]:
    """How far each array of one scan-view is from the live teacher's."""
    encoding, agreement = store.identity.encoding, AGREEMENT[store.identity.precision]
    expected = {name: (sites, features) for name, _, sites, features in arrays_of(live, encoding)}
    for name, how, sites, features in arrays_of(cached, encoding):
        live_sites, live_features = expected[name]
        error = relative_error(features, live_features) if torch.equal(sites, live_sites) else float("inf")
        # Outliers cost one byte a lot.
        encoded = decodable(encode(live_features, how, name, encoding.steps_of(layer_of(name)))).decode()
        loss = ENCODING_SLACK * relative_error(encoded, live_features)
        yield LiveError(name, how, error, max(TOLERANCES[how], loss, agreement))


def arrays_of(
    targets: TeacherTargets, encoding: TargetEncoding
) -> Iterator[tuple[str, ArrayEncoding, torch.Tensor, torch.Tensor]]:
    """Arrays of targets by the names that they have in a store: name, encoding, voxels or pillars, and numbers."""
    yield LOGITS, encoding.logits, targets.voxels, targets.logits
    for name, layer in targets.layers.items():
        yield f"{name}{PILLAR_FEATURES}", encoding.pillar_features, layer.pillars, layer.features
    for name, voxel_layer in targets.voxel_layers.items():
        yield f"{name}{VOXEL_FEATURES}", encoding.voxel_features, voxel_layer.voxels, voxel_layer.features


def relative_error(features: torch.Tensor, expected: torch.Tensor) -> float:
    """|features - expected| / |expected| in the Frobenius norm; 1 where nothing but zeros is expected."""
    difference = float(torch.linalg.vector_norm((features - expected).double()))
    size = float(torch.linalg.vector_norm(expected.double()))
    return difference / (size or difference or 1.0)


def worst(scan_views: Iterable[Iterable[LiveError]]) -> list[LiveError]:
    """The error of each array that comes nearest to its limit, or exceeds it most, over scan-views."""
    return [max(of_array, key=lambda error: error.error / error.limit) for of_array in zip(*scan_views, strict=True)]
