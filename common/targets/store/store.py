"""Targets of many scans in one storage, with a manifest that says what made them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.base.environment import environment
from common.base.errors import StoreError
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.scans.view import View
from common.targets.store.checks import (
    ForeignFileError,
    check_arrays,
    check_belongs,
    check_scan_file,
    errors_named,
    read_checked,
)
from common.targets.store.chunks import MemberError
from common.targets.store.file_names import SEQUENCES, ScanView, file_name, is_scan_file, scan_view_of
from common.targets.store.identity import StoreIdentity, differences, grid_identity
from common.targets.store.layout import scan_hash
from common.targets.store.manifest import MANIFEST, manifest_bytes, read_manifest
from common.targets.store.members import UnwrittenArrays, read_members
from common.targets.store.open_storage import open_storage
from common.targets.store.scan_file import EncodedTargets, start_encoding
from common.targets.store.storage import MissingFileError, Storage
from common.targets.store.zarr_zip import zip_of_group
from common.targets.teacher_targets import TeacherTargets

Parsed = TypeVar("Parsed")


class TargetStore:
    """Targets of many scans, one file for each scan and view.

    A scan's targets appear whole or not at all, and any number of processes may write different scans without talking
    to each other. The listing of the files is the index: it cannot disagree with them. Make a store with
    `create_or_resume` or `open`.

    Attributes:
        storage: where the files are.
        identity: what made them.
        signed: whether every scan file must have the identity's hash; files of earlier versions do not.
    """

    def __init__(self, storage: Storage, identity: StoreIdentity, signed: bool = True) -> None:
        self.storage = storage
        self.identity = identity
        self.signed = signed

    @classmethod
    def create_or_resume(
        cls,
        location: str | Path | Storage,
        identity: StoreIdentity,
        provenance: dict[str, Any] | None = None,
        signed: bool = True,
    ) -> "TargetStore":
        """Open a store for writing; make it where there is none.

        Args:
            location: folder, URL or storage.
            identity: of what is about to be written.
            provenance: what to record when the store is made, never compared; `environment()` by default.
            signed: False where it is to hold scan files of an earlier version, too; recorded when the store is made.

        Raises:
            StoreError: the store was made by something else; lists each difference.
        """
        storage = open_storage(location)
        # Of several processes that start at once one creates the manifest; all compare theirs with it.
        made = environment() if provenance is None else provenance
        storage.create(MANIFEST, manifest_bytes(identity, made, signed))
        store = cls.open(storage)
        lines = differences(store.identity.described, identity.described)
        if lines:
            raise StoreError(
                f"{storage.location}: this store was made with other settings; nothing was written.\n"
                + "\n".join(lines)
                + "\nChoose another --cache, delete this one, or use the settings it was made with."
            )
        return store

    @classmethod
    def open(cls, location: str | Path | Storage) -> "TargetStore":
        """Open an existing store.

        Raises:
            StoreError: there is none, or its manifest is damaged or of another format version.
        """
        storage = open_storage(location)
        manifest = read_manifest(storage)
        return cls(storage, manifest.identity, manifest.signed)

    @property
    def location(self) -> str:
        """Where the store is."""
        return self.storage.location

    def check_fits(self, grid: PolarGrid, label_map: LabelMap, layers: Iterable[str]) -> None:
        """Refuse an experiment that this store was not made for.

        Raises:
            StoreError: grid, volume, classes or learning map differ, or a layer is not in the store; lists each
                difference.
        """
        stored = self.identity.model_dump(mode="json", include={"grid", "classes", "learning_map"})
        expected = {
            "grid": grid_identity(grid).model_dump(mode="json"),
            "classes": label_map.names,
            "learning_map": label_map.model_dump(mode="json")["learning_map"],
        }
        lines = differences(stored, expected)
        absent = [name for name in layers if name not in self.identity.layers]
        if absent:
            held = list(self.identity.layers) or "none, only logits (--experiment logit learns from them)"
            lines.append(f"  layers: the experiment needs {absent}, the store has {held}")
        if lines:
            raise StoreError(
                f"{self.location}: this store does not fit the experiment.\n" + "\n".join(lines) + "\n"
                "Change the experiment's settings, or dump targets for them into another --cache."
            )

    def name(self, scan: ScanId, view: int) -> str:
        """File of one scan and view, whether it exists or not."""
        return file_name(scan, view)

    def sizes(self) -> dict[ScanView, int]:
        """Bytes of every scan and view whose targets are in the store.

        Raises:
            StoreError: the store cannot be listed, or holds a scan file whose name is that of no scan and view.
        """
        listed = self.storage.sizes(SEQUENCES)
        return {scan_view_of(name, self.location): size for name, size in listed if is_scan_file(name)}

    def finished(self) -> set[ScanView]:
        """Every scan and view whose targets are in the store. Raises StoreError as `sizes`."""
        return {scan_view_of(name, self.location) for name in self.storage.names(SEQUENCES) if is_scan_file(name)}

    def write(self, scan: ScanId, index: int, view: View, targets: TeacherTargets, points: np.ndarray) -> int:
        """Write the targets of one scan and view, whole or not at all.

        Args:
            scan: which scan.
            index: number of the view.
            view: its parameters.
            targets: of this one scan, on any device.
            points: of the scan as read from disk; their hash is stored, so that a changed scan is noticed.

        Returns:
            size of the file in bytes.

        Raises:
            UnstorableError: a target is NaN or infinite, or too large for its encoding.
            StoreError: the targets are not what this store's identity promises (see `checks.check_arrays`), the view
                is not one of the store's, or the file cannot be written.
        """
        return self.write_arrays(scan, index, self.start_encoding(scan, index, view, targets, scan_hash(points))())

    def start_encoding(
        self, scan: ScanId, index: int, view: View, targets: TeacherTargets, scan_sha256: str
    ) -> Callable[[], UnwrittenArrays]:
        """The first half of `write`: launch the encoding on the device of the targets.

        Returns:
            a function that waits for it, in any thread, and gives what `write_arrays` takes. Both raise as `write`.
        """
        views = self.identity.views.count
        if not 0 <= index < views:
            raise StoreError(f"scan {scan}: there is no view {index} among the {views} of {self.location}")
        attributes = {
            "scan": str(scan),
            "view_index": index,
            "view": view.model_dump(mode="json"),
            "scan_sha256": scan_sha256,
            "teacher_hash": self.identity.teacher_hash,
            "identity_hash": self.identity.hash,
        }
        with errors_named(scan, index):
            finish = start_encoding(targets, self.identity.grid.shape, self.identity.encoding, attributes)

        def encoded() -> UnwrittenArrays:
            with errors_named(scan, index):
                return finish()

        return encoded

    def write_arrays(self, scan: ScanId, index: int, arrays: UnwrittenArrays) -> int:
        """The second half of `write`: check, compress and write what is encoded; returns and raises as `write`."""
        with errors_named(scan, index):
            check_arrays(arrays, self.identity, scan, index)
        data = zip_of_group(arrays.arrays, arrays.attributes, self.identity.encoding)
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
        if not self.identity.layers.keys() >= set(names):
            raise StoreError(f"{self.location}: keeps the layers {list(self.identity.layers)}, not all of {names}")

        def parse(data: bytes) -> tuple[EncodedTargets, View]:
            members = read_members(data)
            attributes = check_belongs(members, self.identity, scan, index, self.signed)
            if points is not None and attributes.scan_sha256 != scan_hash(points):
                raise StoreError(
                    f"{self.location}/{self.name(scan, index)}: scan {scan} has changed since its targets were made. "
                    "Restore the scan, or run the command repair, which dumps it again."
                )
            return read_checked(members, attributes, self.identity, names, voxel_features), attributes.view

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
        """Check everything about the file of one scan and view, see `checks.check_scan_file`.

        Returns:
            stored bytes by array.

        Raises:
            StoreError: something is damaged or missing; names the scan and the array.
        """

        def parse(data: bytes) -> dict[str, int]:
            return check_scan_file(data, self.identity, scan, index, self.signed)[1].stored_bytes()

        return self._parsed(scan, index, parse)

    def _parsed(self, scan: ScanId, index: int, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What `parse` makes of a scan file; a damaged or outdated copy of the file is read anew once."""
        data = self._bytes(scan, index)
        try:
            return self._parse(scan, index, data, parse)
        except StoreError:
            if not self.storage.drop_local_copy(self.name(scan, index)):
                raise
        return self._parse(scan, index, self._bytes(scan, index), parse)

    def _parse(self, scan: ScanId, index: int, data: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            return parse(data)
        except MemberError as error:
            raise StoreError(
                f"{self.location}/{self.name(scan, index)}: scan {scan}, view {index} is damaged: {error}. "
                "Run the command repair, or delete the file and run polar-distill dump again."
            ) from error
        except ForeignFileError as error:
            raise StoreError(
                f"{self.location}/{self.name(scan, index)}: holds other targets.\n"
                + "\n".join(error.lines)
                + "\nRun the command repair."
            ) from error

    def _bytes(self, scan: ScanId, index: int) -> bytes:
        try:
            return self.storage.read(self.name(scan, index))
        except MissingFileError as error:
            raise StoreError(
                f"{self.location}: no targets of scan {scan}, view {index}. Run polar-distill dump again: it "
                "dumps exactly what is missing."
            ) from error
