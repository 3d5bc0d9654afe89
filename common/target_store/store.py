"""A folder of scan files with a manifest that says what made them."""

import datetime
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.config import parse_settings
from common.errors import SettingsError, StoreError
from common.files import replacing, write_atomically
from common.label_map import LabelMap
from common.polar_grid import PolarGrid
from common.semantic_kitti import ScanId
from common.target_store.identity import FORMAT_VERSION, StoreIdentity, differences, grid_identity
from common.target_store.scan_file import read_scan_file, write_scan_file
from common.teacher_targets import TeacherTargets
from common.view import View

MANIFEST = "manifest.json"
SUFFIX = ".zarr.zip"


class TargetStore:
    """Targets of many scans, one file for each scan and view.

    A scan's targets appear whole or not at all, and any number of processes may write different scans. Make one with
    `create_or_resume` or `open`.

    Attributes:
        folder: where the store is.
        identity: what made it.
    """

    def __init__(self, folder: Path, identity: StoreIdentity) -> None:
        self.folder = folder
        self.identity = identity

    @classmethod
    def create_or_resume(cls, folder: Path, identity: StoreIdentity, provenance: dict[str, Any]) -> "TargetStore":
        """Open a store for writing; make it where there is none.

        Args:
            folder: of the store.
            identity: of what is about to be written.
            provenance: package versions and the like; recorded when the store is made, never compared.

        Raises:
            StoreError: the store was made by something else; lists each difference.
        """
        if not (folder / MANIFEST).exists():
            manifest = {
                "identity": identity.model_dump(mode="json"),
                "identity_hash": identity.hash,
                "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "provenance": provenance,
            }
            write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        store = cls.open(folder)
        lines = differences(store.identity.model_dump(mode="json"), identity.model_dump(mode="json"))
        if lines:
            raise StoreError(
                f"{folder}: this store was made with other settings; nothing was written.\n" + "\n".join(lines) + "\n"
                "Choose another CACHE folder, delete this one, or use the settings it was made with."
            )
        return store

    @classmethod
    def open(cls, folder: Path) -> "TargetStore":
        """Open an existing store.

        Raises:
            StoreError: there is none, or its manifest is damaged or of another format version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreError(
                f"{folder}: no target store here ({MANIFEST} is missing). Run make dump-teacher first, or check CACHE."
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            version = manifest["identity"]["format_version"]
            if version != FORMAT_VERSION:
                raise StoreError(
                    f"{path}: format version {version!r} is not the one that this program reads ({FORMAT_VERSION}). "
                    "Use the program that made it, or dump again into another CACHE folder."
                )
            identity = parse_settings(StoreIdentity, manifest["identity"], str(path))
            intact = manifest["identity_hash"] == identity.hash
        except SettingsError as error:
            raise StoreError(f"{error.message}\nRestore the manifest from a copy, or dump again.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a manifest of a target store ({error}). Restore it from a copy.") from error
        if not intact:
            raise StoreError(f"{path}: was changed after the store was made. Restore it from a copy, or dump again.")
        return cls(folder, identity)

    def check_fits(self, grid: PolarGrid, label_map: LabelMap, layers: Iterable[str]) -> None:
        """Refuse an experiment that this store was not made for.

        Raises:
            StoreError: grid, volume or classes differ, or a layer is not in the store; lists each difference.
        """
        stored = self.identity.model_dump(mode="json")
        expected = {
            "grid": grid_identity(grid).model_dump(mode="json"),
            "classes": label_map.names,
        }
        lines = differences({key: stored[key] for key in expected}, expected)
        absent = [name for name in layers if name not in self.identity.layers]
        if absent:
            lines.append(f"  layers: the experiment needs {absent}, the store has {list(self.identity.layers)}")
        if lines:
            raise StoreError(
                f"{self.folder}: this store does not fit the experiment.\n" + "\n".join(lines) + "\n"
                "Change the experiment's settings, or dump targets for them into another CACHE folder."
            )

    def path(self, scan: ScanId, view: int) -> Path:
        """File of one scan and view, whether it exists or not."""
        return self.folder / "sequences" / scan.sequence / f"{scan.frame}.v{view}{SUFFIX}"

    def finished(self) -> set[tuple[ScanId, int]]:
        """Every scan and view whose targets are in the store."""
        found = set()
        for path in self.folder.glob(f"sequences/*/*{SUFFIX}"):
            frame, _, view = path.name.removesuffix(SUFFIX).rpartition(".v")
            found.add((ScanId(path.parent.name, frame), int(view)))
        return found

    def write(self, scan: ScanId, index: int, view: View, targets: TeacherTargets, points: np.ndarray) -> int:
        """Write the targets of one scan and view, whole or not at all.

        Args:
            scan: which scan.
            index: number of the view.
            view: its parameters.
            targets: of this one scan.
            points: of the scan as read from disk; their hash is stored, so that a changed scan is noticed.

        Returns:
            size of the file in bytes.

        Raises:
            StoreError: a target is NaN or infinite.
        """
        attributes = {
            "scan": str(scan),
            "view_index": index,
            "view": view.model_dump(mode="json"),
            "scan_sha256": scan_hash(points),
            "teacher_hash": self.identity.teacher_hash,
        }
        path = self.path(scan, index)
        with replacing(path) as temporary:
            try:
                write_scan_file(temporary, targets, self.identity.grid.shape, self.identity.encoding, attributes)
            except StoreError as error:
                raise StoreError(f"scan {scan}, view {index}: {error.message}") from error
        return path.stat().st_size

    def read(
        self, scan: ScanId, index: int, points: np.ndarray, layers: Iterable[str] | None = None, voxels: bool = False
    ) -> tuple[TeacherTargets, View]:
        """Targets of one scan and view as float32 tensors on the CPU, and the view they belong to.

        Args:
            scan: which scan.
            index: number of the view.
            points: of the scan as read from disk, to be sure that it is the one the teacher saw.
            layers: teacher layers to read, all by default.
            voxels: read the layers' voxel features too.

        Raises:
            StoreError: the targets are missing, damaged, or belong to another scan, another version of it or another
                teacher.
        """
        if voxels and not self.identity.voxel_features:
            raise StoreError(f"{self.folder}: keeps no voxel features; dump again with voxel_features=true")
        path = self.path(scan, index)
        if not path.exists():
            raise StoreError(f"{path}: no targets of scan {scan}, view {index}. Run make dump-teacher again.")
        targets, attributes = read_scan_file(path, self.identity.layers if layers is None else layers, voxels)
        if attributes.get("teacher_hash") != self.identity.teacher_hash or attributes.get("scan") != str(scan):
            raise StoreError(f"{path}: holds targets of another teacher or scan. Delete it and run make dump-teacher.")
        if attributes.get("scan_sha256") != scan_hash(points):
            raise StoreError(
                f"{path}: scan {scan} has changed since its targets were made. Restore the scan, or delete this file "
                "and run make dump-teacher again."
            )
        return targets, View.model_validate(attributes["view"])


def scan_hash(points: np.ndarray) -> str:
    """SHA-256 of a scan's points as stored on disk."""
    return hashlib.sha256(np.ascontiguousarray(points).data).hexdigest()
