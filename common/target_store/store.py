"""Targets of many scans in one storage, with a manifest that says what made them."""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.config import parse_settings
from common.errors import SettingsError, StoreError
from common.label_map import LabelMap
from common.polar_grid import PolarGrid
from common.semantic_kitti import ScanId
from common.target_store.identity import FORMAT_VERSION, StoreIdentity, differences, grid_identity
from common.target_store.members import MemberError, read_members
from common.target_store.scan_file import EncodedTargets, parse_scan_file, scan_file_bytes
from common.target_store.storage import MissingFileError, Storage, open_storage
from common.teacher_targets import TeacherTargets
from common.view import View

MANIFEST = "manifest.json"
SEQUENCES = "sequences/"
SUFFIX = ".zarr.zip"

Parsed = TypeVar("Parsed")


class TargetStore:
    """Targets of many scans, one file for each scan and view.

    A scan's targets appear whole or not at all, and any number of processes may write different scans without talking
    to each other. The listing of the files is the index: it cannot disagree with them. Make a store with
    `create_or_resume` or `open`.

    Attributes:
        storage: where the files are.
        identity: what made them.
    """

    def __init__(self, storage: Storage, identity: StoreIdentity) -> None:
        self.storage = storage
        self.identity = identity

    @classmethod
    def create_or_resume(
        cls, location: str | Path | Storage, identity: StoreIdentity, provenance: dict[str, Any]
    ) -> "TargetStore":
        """Open a store for writing; make it where there is none.

        Args:
            location: folder, URL or storage.
            identity: of what is about to be written.
            provenance: package versions and the like; recorded when the store is made, never compared.

        Raises:
            StoreError: the store was made by something else; lists each difference.
        """
        storage = as_storage(location)
        manifest = {
            "identity": identity.model_dump(mode="json"),
            "identity_hash": identity.hash,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "provenance": provenance,
        }
        # Of several processes that start at once one creates the manifest; all compare theirs with it.
        storage.create(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        store = cls.open(storage)
        lines = differences(store.identity.model_dump(mode="json"), identity.model_dump(mode="json"))
        if lines:
            raise StoreError(
                f"{storage.location}: this store was made with other settings; nothing was written.\n"
                + "\n".join(lines)
                + "\nChoose another CACHE, delete this one, or use the settings it was made with."
            )
        return store

    @classmethod
    def open(cls, location: str | Path | Storage) -> "TargetStore":
        """Open an existing store.

        Raises:
            StoreError: there is none, or its manifest is damaged or of another format version.
        """
        storage = as_storage(location)
        name = f"{storage.location}/{MANIFEST}"
        try:
            manifest = json.loads(storage.read(MANIFEST))
            version = manifest["identity"]["format_version"]
            if version != FORMAT_VERSION:
                raise StoreError(f"{name}: format version {version}, this program reads {FORMAT_VERSION}. Dump again.")
            identity = parse_settings(StoreIdentity, manifest["identity"], name)
            intact = manifest["identity_hash"] == identity.hash
        except MissingFileError as error:
            raise StoreError(
                f"{storage.location}: no target store here ({MANIFEST} is missing). Run make dump-teacher first, or "
                "check CACHE."
            ) from error
        except SettingsError as error:
            raise StoreError(f"{error.message}\nRestore the manifest from a copy, or dump again.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{name}: not a manifest of a target store ({error}). Restore it from a copy.") from error
        if not intact:
            raise StoreError(f"{name}: was changed after the store was made. Restore it from a copy, or dump again.")
        return cls(storage, identity)

    @property
    def location(self) -> str:
        """Where the store is."""
        return self.storage.location

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
                f"{self.location}: this store does not fit the experiment.\n" + "\n".join(lines) + "\n"
                "Change the experiment's settings, or dump targets for them into another CACHE folder."
            )

    def name(self, scan: ScanId, view: int) -> str:
        """File of one scan and view, whether it exists or not."""
        return f"{SEQUENCES}{scan.sequence}/{scan.frame}.v{view}{SUFFIX}"

    def sizes(self) -> dict[tuple[ScanId, int], int]:
        """Bytes of every scan and view whose targets are in the store."""
        found = {}
        for name, size in self.storage.sizes(SEQUENCES):
            sequence, _, file = name.removeprefix(SEQUENCES).partition("/")
            frame, _, view = file.removesuffix(SUFFIX).rpartition(".v")
            if file.endswith(SUFFIX) and frame and view.isdigit():
                found[(ScanId(sequence, frame), int(view))] = size
        return found

    def finished(self) -> set[tuple[ScanId, int]]:
        """Every scan and view whose targets are in the store."""
        return set(self.sizes())

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
            StoreError: a target is NaN or infinite, or the file cannot be written.
        """
        attributes = {
            "scan": str(scan),
            "view_index": index,
            "view": view.model_dump(mode="json"),
            "scan_sha256": scan_hash(points),
            "teacher_hash": self.identity.teacher_hash,
        }
        try:
            data = scan_file_bytes(targets, self.identity.grid.shape, self.identity.encoding, attributes)
        except StoreError as error:
            raise StoreError(f"scan {scan}, view {index}: {error.message}") from error
        self.storage.write(self.name(scan, index), data)
        return len(data)

    def read_encoded(
        self,
        scan: ScanId,
        index: int,
        points: np.ndarray | None,
        layers: Iterable[str] | None = None,
        voxel_features: bool = False,
    ) -> tuple[EncodedTargets, View]:
        """Targets of one scan and view as stored, on the CPU, and the view they belong to. Checksums are verified.

        Args:
            scan: which scan.
            index: number of the view.
            points: of the scan as read from disk, to be sure that it is the one the teacher saw; None not to check.
            layers: teacher layers to read, all by default.
            voxel_features: read the layers' voxel features too.

        Raises:
            StoreError: the targets are missing, damaged, or belong to another scan, another version of it or another
                teacher.
        """
        if voxel_features and not self.identity.voxel_features:
            raise StoreError(f"{self.location}: keeps no voxel features; dump again with voxel_features=true")
        names = list(self.identity.layers if layers is None else layers)

        def parse(data: bytes) -> tuple[EncodedTargets, View]:
            targets, attributes = parse_scan_file(data, names, voxel_features)
            self._check_origin(scan, index, attributes, points)
            return targets, View.model_validate(attributes["view"])

        return self._parsed(scan, index, parse)

    def read(
        self,
        scan: ScanId,
        index: int,
        points: np.ndarray | None,
        layers: Iterable[str] | None = None,
        voxel_features: bool = False,
    ) -> tuple[TeacherTargets, View]:
        """As `read_encoded`, decoded to float32."""
        targets, view = self.read_encoded(scan, index, points, layers, voxel_features)
        return targets.decode(), view

    def verify(self, scan: ScanId, index: int) -> dict[str, int]:
        """Decode every array of one scan and view, checking all checksums, those of unused metadata included.

        Returns:
            stored bytes by array.

        Raises:
            StoreError: something is damaged or missing; names the scan and the array.
        """

        def parse(data: bytes) -> dict[str, int]:
            _, attributes = parse_scan_file(data, self.identity.layers, self.identity.voxel_features)
            self._check_origin(scan, index, attributes, None)
            members = read_members(data)
            members.check_all()
            return members.stored_bytes()

        return self._parsed(scan, index, parse)

    def _parsed(self, scan: ScanId, index: int, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What `parse` makes of a scan file; a damaged or outdated copy of the file is read anew once."""
        data = self._bytes(scan, index)
        try:
            return self._parse(scan, index, data, parse)
        except StoreError:
            if not self.storage.forget(self.name(scan, index)):
                raise
        return self._parse(scan, index, self._bytes(scan, index), parse)

    def _parse(self, scan: ScanId, index: int, data: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            return parse(data)
        except MemberError as error:
            raise StoreError(
                f"{self.location}/{self.name(scan, index)}: scan {scan}, view {index} is damaged: {error}. "
                "Run the command repair, or delete the file and run make dump-teacher again."
            ) from error

    def _bytes(self, scan: ScanId, index: int) -> bytes:
        try:
            return self.storage.read(self.name(scan, index))
        except MissingFileError as error:
            raise StoreError(
                f"{self.location}: no targets of scan {scan}, view {index}. Run make dump-teacher again: it dumps "
                "exactly what is missing."
            ) from error

    def _check_origin(self, scan: ScanId, index: int, attributes: dict[str, Any], points: np.ndarray | None) -> None:
        name = f"{self.location}/{self.name(scan, index)}"
        expected = {"teacher_hash": self.identity.teacher_hash, "scan": str(scan), "view_index": index}
        wrong = differences({key: attributes.get(key) for key in expected}, expected)
        if wrong:
            raise StoreError(f"{name}: holds other targets.\n" + "\n".join(wrong) + "\nRun the command repair.")
        if points is not None and attributes.get("scan_sha256") != scan_hash(points):
            raise StoreError(
                f"{name}: scan {scan} has changed since its targets were made. Restore the scan, or run the command "
                "repair, which dumps it again."
            )


def as_storage(location: str | Path | Storage) -> Storage:
    """A storage as it is, or the one at a path or URL."""
    return open_storage(location) if isinstance(location, str | Path) else location


def scan_hash(points: np.ndarray) -> str:
    """SHA-256 of a scan's points as stored on disk."""
    return hashlib.sha256(np.ascontiguousarray(points).data).hexdigest()
