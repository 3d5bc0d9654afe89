"""The manifest of a store: what made it. Written once, when the store is."""

import datetime
import json
from dataclasses import dataclass
from typing import Any

from common.base.config import parse_settings
from common.base.errors import SettingsError, StoreError
from common.base.untrusted_json import parse_json
from common.targets.store.identity import FORMAT_VERSION, StoreIdentity
from common.targets.store.storage import MissingFileError, Storage

MANIFEST = "manifest.json"
SIGNED = "scan_files_have_identity_hash"
LONGEST_QUOTE = 2000
"""Characters of what is wrong with a manifest; it may quote as much of it as it likes."""


@dataclass(frozen=True)
class Manifest:
    """A manifest.

    Attributes:
        identity: of the store.
        values: everything in it, as written: `identity`, `identity_hash`, `made`, `provenance`, and in stores that are
            signed `scan_files_have_identity_hash`.
    """

    identity: StoreIdentity
    values: dict[str, Any]

    @property
    def signed(self) -> bool:
        """Whether every scan file has the hash of the identity; stores of earlier versions hold some without."""
        return bool(self.values.get(SIGNED))


def manifest_bytes(identity: StoreIdentity, provenance: dict[str, Any], signed: bool = True) -> bytes:
    """The manifest of a store that is made now; `provenance` is recorded and never compared."""
    manifest = {
        "identity": identity.model_dump(mode="json"),
        "identity_hash": identity.hash,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "provenance": provenance,
        SIGNED: signed,
    }
    return (json.dumps(manifest, indent=1) + "\n").encode()


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of the store in a storage.

    Raises:
        StoreError: there is none, or it is damaged or of another format version.
    """
    name = f"{storage.location}/{MANIFEST}"
    try:
        values = parse_json(storage.read(MANIFEST))
        check_version(values["identity"]["format_version"], name)
        identity = parse_settings(StoreIdentity, values["identity"], name)
        intact = values["identity_hash"] == identity.hash
        if not isinstance(values["made"], str) or not isinstance(values["provenance"], dict):
            raise ValueError("made or provenance has not the expected form")
        if not isinstance(values.get(SIGNED, False), bool):
            raise ValueError(f"{SIGNED} is neither true nor false")
    except MissingFileError as error:
        raise StoreError(
            f"{storage.location}: no target store here ({MANIFEST} is missing). Run polar-distill dump first, or check "
            "--cache."
        ) from error
    except SettingsError as error:
        problem = error.message[:LONGEST_QUOTE]
        raise StoreError(f"{problem}\nRestore the manifest from a copy, or dump again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{name}: not a manifest of a target store ({str(error)[:LONGEST_QUOTE]}). Restore it from a copy."
        ) from error
    if not intact:
        raise StoreError(f"{name}: was changed after the store was made. Restore it from a copy, or dump again.")
    return Manifest(identity, values)


def check_version(version: Any, name: str) -> None:
    """Refuse a store of another format.

    Raises:
        StoreError: this program is too old for it, or too new.
        TypeError: this is no version.
    """
    if type(version) is not int:
        raise TypeError("format_version is not a number")
    if version != FORMAT_VERSION:
        step = "Update the program" if version > FORMAT_VERSION else "Dump again, or use the program that wrote it"
        raise StoreError(f"{name}: format version {version}, this program reads {FORMAT_VERSION}. {step}.")
