"""Damaged scan files, manifests and archives, and the commands that meet them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.faults import reading
from tests.benchmarks.faults.damage import damaged
from tests.benchmarks.faults.verdicts import Kind, Verdict, judge, nothing_changed
from tests.benchmarks.faults.workshop import ENCODINGS, Case, convert_words


def spoil(case: Case, path: Path, other: Path, seed: int | None = None) -> str:
    """Damage a file in place; what was done."""
    chosen = case.seed if seed is None else seed
    spoilt, how = damaged(path.read_bytes(), other.read_bytes(), chosen, case.generator)
    path.write_bytes(spoilt)
    return f"{path.name}: {how}"


def spoilt_store(case: Case) -> tuple[str, Path, str, str]:
    """A copy of a store with one damaged scan file: the store's name, the copy, the file's name, what was done."""
    kind = [*ENCODINGS, "exact"][case.seed % (len(ENCODINGS) + 1)]
    store, names = case.copy(kind, "store"), case.workshop.scan_files[kind]
    chosen, other = (int(number) for number in case.generator.choice(len(names), 2, replace=False))
    # Seeds go round the stores as well as the damages.
    how = spoil(case, store / names[chosen], case.workshop.path(kind) / names[other], case.seed // 4)
    return kind, store, names[chosen], f"{kind} {how}"


def scan_view(name: str) -> str:
    """`00/000000.v1` of a scan file's name."""
    return name.removeprefix("sequences/").removesuffix(".zarr.zip")


def named_by(name: str) -> tuple[str, ...]:
    """What an error about a scan file may call it."""
    scan, _, view = scan_view(name).rpartition(".v")
    return (f"scan {scan}, view {view}", f"{scan}  view {view}", f"{scan} view {view}", name, scan)


def read(case: Case) -> Verdict:
    """The library reads every scan-view."""
    kind, store, name, what = spoilt_store(case)
    ended = case.call(lambda: reading.digests(store))
    expected = case.workshop.digests[kind]

    def intact() -> bool:
        return all(value == expected.get(key) for key, value in ended.value.items())

    refused = {key: value for key, value in (ended.value or {}).items() if value.startswith(reading.REFUSED)}
    if set(refused) == {scan_view(name)} and all(
        ended.value[key] == expected[key] for key in expected if key not in refused
    ):
        message = next(iter(refused.values()))
        ended = replace(ended, status=1, output=message)
    return judge(ended, what, named_by(name), intact, nothing_changed)


def verify(case: Case) -> Verdict:
    """The command verify."""
    kind, store, name, what = spoilt_store(case)
    ended = case.command("verify", "--cache", store)
    return judge(ended, what, named_by(name), lambda: reads_as(case, store, kind), nothing_changed)


def merge(case: Case) -> Verdict:
    """A merge of the damaged store alone."""
    kind, store, name, what = spoilt_store(case)
    ended = case.command("merge", "--from", store, "--to", case.folder / "merged")
    merged = case.folder / "merged"
    return judge(ended, what, named_by(name), lambda: reads_as(case, merged, kind), lambda: foreign(case, merged, kind))


def merge_with_whole(case: Case) -> Verdict:
    """A merge of the damaged store with a whole one: the whole copies are taken."""
    kind, store, name, what = spoilt_store(case)
    merged = case.folder / "merged"
    ended = case.command("merge", "--from", store, "--from", case.workshop.path(kind), "--to", merged)
    return judge(ended, what, named_by(name), lambda: reads_as(case, merged, kind), lambda: foreign(case, merged, kind))


def convert(case: Case) -> Verdict:
    """A conversion of the damaged store, against that of the whole one."""
    store, names = case.copy("exact", "store"), case.workshop.scan_files["exact"]
    name, other = names[case.seed % len(names)], names[(case.seed + 1) % len(names)]
    what = spoil(case, store / name, case.workshop.path("exact") / other)
    converted, expected = case.folder / "converted", case.workshop.path("converted")

    def wrong() -> str:
        return "" if files_within(converted, expected) else "wrote other numbers than the whole store gives"

    ended = case.command(*convert_words(store, converted))
    return judge(
        ended, what, named_by(name), lambda: scan_names(converted) == scan_names(expected) and not wrong(), wrong
    )


def repair(case: Case) -> Verdict:
    """The command repair brings back what was there."""
    store, names = case.copy("exact", "store"), case.workshop.scan_files["exact"]
    name, other = names[case.seed % len(names)], names[(case.seed + 3) % len(names)]
    what = spoil(case, store / name, case.workshop.path("exact") / other)
    ended = case.command("repair", *case.workshop.dump_words(store)[1:])
    return judge(ended, what, named_by(name), lambda: reads_as(case, store, "exact"), nothing_changed)


def train(case: Case) -> Verdict:
    """A training run from the damaged store."""
    store, names = case.copy("train", "store"), case.workshop.scan_files["train"]
    name = names[case.seed % len(names)]
    what = spoil(case, store / name, case.workshop.path("train") / names[(case.seed + 2) % len(names)])
    run = case.folder / "run"
    ended = case.command(*case.workshop.train_words(run, store))
    names_of_it = (*named_by(name), "manifest.json")
    return judge(ended, what, names_of_it, lambda: same_as_straight(case, run), nothing_changed)


def same_as_straight(case: Case, run: Path) -> bool:
    """Whether a run ended as the undisturbed one."""
    left, right = case.prepared(lambda: [reading.run_digests(path) for path in (run, case.workshop.path("straight"))])
    return left == right


def reads_as(case: Case, store: Path, kind: str) -> bool:
    """Whether a store reads bit for bit as the one it was copied from."""
    return case.prepared(lambda: reading.digests(store)) == case.workshop.digests[kind]


def foreign(case: Case, target: Path, kind: str) -> str:
    """Whether a merge wrote other numbers than those of the whole store, in words."""
    if not target.exists() or files_within(target, case.workshop.path(kind)):
        return ""
    given, expected = case.prepared(lambda: reading.digests(target)), case.workshop.digests[kind]
    wrong = [name for name, value in given.items() if value != expected.get(name)]
    return f"wrote other numbers: {', '.join(wrong)}" if wrong else ""


def files_within(folder: Path, whole: Path) -> bool:
    """Whether every scan file of a folder is, byte for byte, one of the whole store's."""
    expected = reading.scan_file_bytes(whole)
    return all(expected.get(name) == value for name, value in reading.scan_file_bytes(folder).items())


def scan_names(folder: Path) -> set[str]:
    """Names of the scan files below a folder."""
    return set(reading.scan_file_bytes(folder))


def manifest(words: Callable[[Case, Path], Sequence[object]]) -> Callable[[Case], Verdict]:
    """A store with a damaged manifest, and a command."""

    def attack(case: Case) -> Verdict:
        store = case.copy("train", "store")
        path, other = store / "manifest.json", case.workshop.path("exact") / "manifest.json"
        what = spoil(case, path, other)
        ended = case.command(*words(case, store))
        original = json.loads((case.workshop.path("train") / "manifest.json").read_text())

        def intact() -> bool | None:
            if "of this store: run verify" in ended.output:
                return None
            return json.loads(path.read_bytes())["identity"] == original["identity"] and (
                case.prepared(lambda: reading.digests(store)) == case.workshop.digests["train"]
            )

        return judge(ended, what, ("manifest.json", "00/000000", str(store)), intact, nothing_changed)

    return attack


def archive(words: Callable[[Case, Path], Sequence[object]]) -> Callable[[Case], Verdict]:
    """A damaged archive, and a command."""

    def attack(case: Case) -> Verdict:
        path, merged = case.copy("archive.zip", "store.zip"), case.folder / "merged"
        what = spoil(case, path, case.workshop.path("teacher.pt"))
        ended = case.command(*words(case, path))
        read_from = merged if merged.exists() else path
        wrong = (lambda: foreign(case, merged, "exact")) if merged.exists() else nothing_changed
        return judge(ended, what, (str(path), "00/0000", "08/0000"), lambda: reads_as(case, read_from, "exact"), wrong)

    return attack


def archive_read(case: Case) -> Verdict:
    """The library reads every scan-view of a damaged archive: each is right or refused."""
    path = case.copy("archive.zip", "store.zip")
    what = spoil(case, path, case.workshop.path("teacher.pt"))
    ended = case.call(lambda: reading.digests(path))
    expected = case.workshop.digests["exact"]
    given = {} if ended.value is None else ended.value
    refused = [value for value in given.values() if value.startswith(reading.REFUSED)]
    # What is not in the listing any more is missed by every reader: they ask by name.
    right = all(value == expected.get(key) for key, value in given.items() if not value.startswith(reading.REFUSED))
    if refused and right:
        ended = replace(ended, status=1, output=" ".join(refused))
    return judge(ended, what, (str(path), *expected), lambda: right, nothing_changed)


KINDS = (
    Kind("scan file: read", 160, read),
    Kind("scan file: verify", 120, verify),
    Kind("scan file: merge", 48, merge),
    Kind("scan file: merge with a whole store", 24, merge_with_whole),
    Kind("scan file: convert", 36, convert),
    Kind("scan file: repair", 12, repair),
    Kind("scan file: train", 12, train),
    Kind("manifest: info", 60, manifest(lambda case, store: ["info", "--cache", store])),
    Kind("manifest: verify", 36, manifest(lambda case, store: ["verify", "--cache", store])),
    Kind("manifest: dump", 24, manifest(lambda case, store: case.workshop.dump_words(store, "train"))),
    Kind("archive: read", 60, archive_read),
    Kind("archive: verify", 48, archive(lambda case, path: ["verify", "--cache", path])),
    Kind("archive: merge", 36, archive(lambda case, path: ["merge", "--from", path, "--to", case.folder / "merged"])),
)
