"""Teacher targets on disk. The only module that knows paths, codecs, chunks, checksums and the manifest.

Everything that one's own training loop or one's own teacher needs is here; `cache/README.md` has an example of each.

To read: `TargetStore.open`, `finished`, and `read` (float32) or `read_encoded` (as stored, to be decoded on a GPU).
To write: `StoreIdentity.of`, `TargetStore.create_or_resume`, `write`; `TargetEncoding` says how, `ViewSet` which views.
What is read and written: `TeacherTargets`, with `PillarFeatures` and `VoxelFeatures` by layer. They are made from one's
own logits by `targets_of_points` or `targets_of_voxels`, and `logits_of_points` takes them back to the points.
"""

from common.base.errors import StoreError
from common.scans.label_map import load_label_map
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.scans.view import View, apply_view
from common.targets.store.encoding import UnstorableError
from common.targets.store.file_names import ScanView
from common.targets.store.identity import StoreIdentity, TargetEncoding, ViewSet
from common.targets.store.points import logits_of_points, targets_of_points, targets_of_voxels
from common.targets.store.scan_file import EncodedTargets
from common.targets.store.store import TargetStore
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures

__all__ = [
    "EncodedTargets",
    "PillarFeatures",
    "PolarGrid",
    "ScanId",
    "ScanView",
    "StoreError",
    "StoreIdentity",
    "TargetEncoding",
    "TargetStore",
    "TeacherTargets",
    "UnstorableError",
    "View",
    "ViewSet",
    "VoxelFeatures",
    "apply_view",
    "load_label_map",
    "logits_of_points",
    "targets_of_points",
    "targets_of_voxels",
]
