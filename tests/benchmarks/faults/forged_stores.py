"""Forged manifests and archives: hashed anew, with names that lead elsewhere and sizes without bounds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.faults import reading
from tests.benchmarks.faults.forged_commands import LIMIT, NAME, SCAN_VIEW, TERMINAL, info, to_lz4, to_result, verify
from tests.benchmarks.faults.verdicts import Kind, Verdict, each, judge
from tests.benchmarks.faults.workshop import Case
from tests.targets.store.forgery import with_identity, zip_of


def rehashed(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A manifest with another identity, and the hash of that."""
    return lambda manifest: with_identity(manifest, change)


def in_manifest(**changes: Any) -> Callable[[bytes], bytes]:
    """A manifest with other fields beside the identity."""
    return lambda manifest: json.dumps(json.loads(manifest) | changes).encode()


MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    "a million views": rehashed(lambda identity: identity["views"].update(count=1_000_000)),
    "1e18 views": rehashed(lambda identity: identity["views"].update(count=10**18)),
    "views that are a text": rehashed(lambda identity: identity["views"].update(count="two")),
    "a grid of 1e12": rehashed(lambda identity: identity["grid"].update(shape=[10**12, 10**12, 10**12])),
    "a grid of zeros": rehashed(lambda identity: identity["grid"].update(shape=[0, 0, 0])),
    "a negative grid": rehashed(lambda identity: identity["grid"].update(shape=[-16, -12, -8])),
    "limits that are infinite": rehashed(lambda identity: identity["grid"].update(maximum=[1e999, 1e999, 1e999])),
    "classes of terminal codes": rehashed(lambda identity: identity.update(classes=[TERMINAL] * 20)),
    "a million classes": rehashed(lambda identity: identity.update(classes=["car"] * 1_000_000)),
    "no classes": rehashed(lambda identity: identity.update(classes=[])),
    "layers that lead out": rehashed(lambda identity: identity.update(layers={"../../../victim": 4})),
    "layers of terminal codes": rehashed(lambda identity: identity.update(layers={TERMINAL: 4})),
    "layers of 1e12 channels": rehashed(lambda identity: identity["layers"].update(up0e=10**12)),
    "layers of negative channels": rehashed(lambda identity: identity["layers"].update(up0e=-6)),
    "a teacher of terminal codes": rehashed(lambda identity: identity.update(teacher_hash=TERMINAL)),
    "a teacher of a million letters": rehashed(lambda identity: identity.update(teacher_hash="a" * 1_000_000)),
    "an unknown field": rehashed(lambda identity: identity.update({TERMINAL: 1})),
    "a newer format": rehashed(lambda identity: identity.update(format_version=10**6)),
    "a format that is a list": rehashed(lambda identity: identity.update(format_version=[2])),
    "a format of terminal codes": rehashed(lambda identity: identity.update(format_version=TERMINAL)),
    "another codec": rehashed(lambda identity: identity["encoding"].update(codec="pickle")),
    "an identity that is a list": in_manifest(identity=[]),
    "an identity that is null": in_manifest(identity=None),
    "made by terminal codes": in_manifest(made=TERMINAL, provenance={"torch": TERMINAL, TERMINAL: TERMINAL}),
    "a provenance that is a list": in_manifest(provenance=[1, 2]),
    "made at a number": in_manifest(made=7),
    "hashes that files may have": in_manifest(scan_files_have_identity_hash="perhaps"),
    "JSON 100,000 deep": lambda manifest: b"[" * 100_000 + b"]" * 100_000,
    "provenance 100,000 deep": lambda manifest: manifest[:-3] + b', "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "500 MB of blanks": lambda manifest: manifest + b" " * 500_000_000,
    "not UTF-8": lambda manifest: b"\xff\xfe" + manifest,
    "repeated keys": lambda manifest: manifest.replace(b"{", b'{"identity": 3, ', 1),
}


def manifest(words: Callable[[Case, Path], Sequence[object]]) -> Callable[[Case, str], Verdict]:
    """A store with a forged manifest, and a command; what it accepts, it must not print as it stands."""

    def attack(case: Case, how: str) -> Verdict:
        store = case.copy("plain", "store")
        path = store / "manifest.json"
        path.write_bytes(MANIFESTS[how](path.read_bytes()))
        ended = case.command(*words(case, store), limit=LIMIT)

        def usable() -> bool | None:
            given = case.prepared(lambda: reading.digests(store))
            honest = given == case.workshop.digests["plain"]
            return honest or (None if set(given) <= {SCAN_VIEW} | given.keys() else False)

        names = ("manifest.json", "00/00000", str(store))
        return judge(ended, how, names, usable, lambda: touched(case, store.name))

    return attack


MEMBERS = (
    "sequences/../../victim/sequences/00/000000.v0.zarr.zip",
    "sequences/x//../../../victim/sequences/00/000000.v0.zarr.zip",
    "sequences/../victim/000000.v0.zarr.zip",
    "sequences/00/../../../victim/manifest.json",
    "sequences/00/..\\..\\victim.v0.zarr.zip",
    "/sequences/00/000009.v0.zarr.zip",
    "sequences//000009.v0.zarr.zip",
    "sequences/00//tmp/000009.v0.zarr.zip",
    "sequences/00/000009.v².zarr.zip",
    "sequences/00/000009.v99999999999999999999.zarr.zip",
    "sequences/00/000009.v-1.zarr.zip",
    f"sequences/00/{TERMINAL}.v0.zarr.zip",
    f"sequences/{'a' * 5000}/000009.v0.zarr.zip",
    "sequences/00/000009.v0.zarr.zip",
    "sequences/00/000000.v0.zarr.zip\0.png",
    "../manifest.json",
    "manifest.json/../../victim/manifest.json",
)


def archive(words: Callable[[Case, Path], Sequence[object]]) -> Callable[[Case, str], Verdict]:
    """An archive with one more member, of a name that leads elsewhere, and a command: nothing outside may change."""

    def attack(case: Case, member: str) -> Verdict:
        files = honest_files(case)
        content = files[NAME.replace("000001", "000000")]
        path = case.folder / "inner/store.zip"
        path.parent.mkdir()
        path.write_bytes(zip_of(files | {member: content}))
        for place in ("victim", "inner/victim"):
            case.copy("plain", place)
        before = reading.tree(case.folder)
        ended = case.command(*words(case, path), limit=LIMIT)
        changed = touched(case, "inner/result", "said", before=before)
        result = case.folder / "inner/result"

        def intact() -> bool | None:
            given = case.prepared(lambda: reading.digests(result if result.exists() else path))
            return None if words is info else given == case.workshop.digests["plain"]

        shown = member.encode("unicode_escape").decode()
        names = ("store.zip", shown, "00/000009", "manifest.json")
        return judge(ended, f"member {shown[:80]}", names, intact, lambda: changed)

    return attack


def honest_files(case: Case) -> dict[str, bytes]:
    """Every file of the made-up store without a codec."""
    folder = case.workshop.path("plain")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def touched(case: Case, *allowed: str, before: dict[str, str] | None = None) -> str:
    """Files of the case's folder that changed beside the allowed ones, and what lies beside it that should not."""
    strangers = [path for path in (case.folder.parent / "victim", case.workshop.root / "victim") if path.exists()]
    if strangers:
        return f"wrote {strangers[0]}"
    if before is None:
        return ""
    now = {name: value for name, value in reading.tree(case.folder).items() if not name.startswith(allowed)}
    changed = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    return f"touched {', '.join(sorted(changed))}" if changed else ""


KINDS: tuple[Kind, ...] = (
    each("forged manifest: info", tuple(MANIFESTS), manifest(info)),
    each("forged manifest: verify", tuple(MANIFESTS), manifest(verify)),
    each("forged manifest: merge", tuple(MANIFESTS), manifest(to_result)),
    each("forged archive: merge", MEMBERS, archive(to_result)),
    each("forged archive: convert", MEMBERS, archive(to_lz4)),
    each("forged archive: verify", MEMBERS, archive(verify)),
    each("forged archive: info", MEMBERS, archive(info)),
)
