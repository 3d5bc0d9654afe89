"""What the commands of stage one print."""

from collections.abc import Sequence
from typing import Any

from common.base.text import aligned_table, count_text, printable, size_text
from common.targets.store import ScanView, StoreIdentity, TargetEncoding, TargetStore
from common.targets.store.contents import ArraySize, StoreContents
from common.targets.store.maintenance import Problem
from common.targets.store.skipped import Skipped
from stage1_dump_teacher.scan_writer import DumpReport
from stage1_dump_teacher.store_care.live_check import LiveError

LISTED_SCANS = 5
"""Scan-views that a line names one by one."""

LISTED_MISSING = 20
"""Missing scan-views that `verify` names one by one."""


MissingBySequence = dict[str, list[ScanView]]
"""Scan-views that a store does not hold yet, for each sequence of a dataset."""


def named(items: Sequence[ScanView]) -> list[str]:
    """Scan-views in words."""
    return [f"{scan} view {view}" for scan, view in items]


def first_named(items: Sequence[ScanView]) -> str:
    """The first of them in words."""
    return ", ".join(named(items[:LISTED_SCANS])) + (", ..." if len(items) > LISTED_SCANS else "")


def missing_lines(missing: MissingBySequence, expected: int, mean_size: float) -> list[str]:
    """How complete a store is that should hold so many scan-views, of so many bytes each (0: not known)."""
    count, all_of_them = sum(map(len, missing.values())), f"{count_text(expected, 'scan-view')} of the dataset"
    if not count:
        return [f"complete   {all_of_them}, none is missing"]
    size = f" (about {size_text(mean_size * count)})" if mean_size else ""
    return [
        f"complete   {100 * (expected - count) / expected:.1f} %: {count:,} of {all_of_them} are missing{size}",
        *(f"  {name}: {len(items):,} missing: {first_named(items)}" for name, items in missing.items() if items),
        "  polar-distill dump dumps exactly these.",
    ]


def steps_text(encoding: TargetEncoding) -> str:
    """Steps of `int8_channel`, such as `2` or `3 (up0e), 2 (others)`."""
    if isinstance(encoding.steps, int):
        return str(encoding.steps)
    return ", ".join(f"{steps} ({name})" for name, steps in encoding.steps.items())


def contents_lines(store: TargetStore, found: StoreContents) -> list[str]:
    """The report of `info`, without completeness."""
    identity, made, encoding = store.identity, found.provenance, store.identity.encoding
    limits = zip(("rho", "phi", "z"), identity.grid.minimum, identity.grid.maximum, strict=True)
    commit = f", commit {made.git_commit[:12]}" if made.git_commit else ""
    voxel_features = encoding.voxel_features if identity.voxel_features else "not kept"
    level = "" if encoding.codec == "none" else f" level {encoding.level}"
    in_bytes = "int8_channel" in (encoding.pillar_features, encoding.logits, voxel_features)
    steps = f"; {steps_text(encoding)} steps a standard deviation of a channel" if in_bytes else ""
    sources = [("converted", made.converted_from)] if made.converted_from else []
    sources += [("merged", source) for source in made.merged_from]
    facts = [
        ("store", f"{store.location}  (format {identity.format_version}, identity {identity.hash[:12]})"),
        ("made", f"{found.manifest['made']} with polar-distill {made.project}{commit}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in made.packages.items() if version)),
        ("teacher", identity.teacher_hash),
        *(("average", line) for line in averaged_lines(identity)),
        (
            "grid",
            f"{' x '.join(map(str, identity.grid.shape))} bins over "
            + ", ".join(f"{name} {low:.2f}..{high:.2f}" for name, low, high in limits),
        ),
        ("classes", f"{len(identity.classes)}"),
        ("layers", ", ".join(f"{name} ({channels})" for name, channels in identity.layers.items()) or "none"),
        (
            "encoding",
            f"pillar features {encoding.pillar_features}, logits {encoding.logits}, voxel features {voxel_features}; "
            f"codec {encoding.codec}{level}{steps}",
        ),
        ("views", identity.views.describe()),
        *([] if identity.precision == "float32" else [("precision", identity.precision)]),
        *(("from", f"{how} from {source.location}, made {source.made}") for how, source in sources),
    ]
    lines = [f"{name:<10} {text}" for name, text in facts]
    if found.total.scan_views:
        sequences = {**found.sequences, **({"all": found.total} if len(found.sequences) > 1 else {})}
        rows = [("sequence", "scans", "scan-views", "size")]
        rows += [(name, f"{p.scans:,}", f"{p.scan_views:,}", size_text(p.size)) for name, p in sequences.items()]
        lines += ["", *aligned_table(rows), "", *array_lines(found)]
    else:
        lines += ["", "The store is empty so far."]
    return list(map(printable, lines))


def averaged_lines(identity: StoreIdentity) -> list[str]:
    """Each teacher whose probabilities a store averages."""
    total, lines = sum(share.weight for share in identity.averaged.values()), []
    for name, share in identity.averaged.items():
        views = f"{share.views} views averaged ({share.policy.describe()}) of " if share.policy else ""
        lines.append(f"{100 * share.weight / total:.3g} %: {views}{name}")
    return lines


def array_lines(found: StoreContents) -> list[str]:
    """Sizes of arrays, as a table."""
    read = "be read as one of this store: run verify."
    readable = found.sampled - found.unreadable
    if not readable:
        return [f"None of {count_text(found.sampled, 'sampled scan file')} could {read}"]
    sizes = found.arrays.values()
    sums = [sum(getattr(size, field) for size in sizes) for field in ("stored", "uncompressed", "plain")]
    rows = [("array", "encoding", "stored", "codec", "float32")]
    for name, size in [*found.arrays.items(), ("all", ArraySize("", *sums))]:
        against = "" if size.encoding == "uint32" else times(size.plain, size.stored)
        rows.append((name, size.encoding, size_text(size.stored), times(size.uncompressed, size.stored), against))
    lines = [
        f"Mean sizes in {count_text(readable, 'sampled scan file')}; how many times smaller than the encoded numbers "
        "(codec) and than",
        "float32 numbers (float32). Scales are counted with their array.",
        *aligned_table(rows),
    ]
    unreadable = count_text(found.unreadable, "sampled scan file")
    return lines + ([f"{unreadable} could not {read}"] if found.unreadable else [])


def times(larger: float, smaller: float) -> str:
    """How many times one size is another: `2.5 x`."""
    return f"{larger / smaller:.1f} x" if smaller else ""


def skipped_lines(skipped: Skipped) -> list[str]:
    """Scan-views that the dump could not use, the first ones with the reason."""
    lines = [f"{count_text(len(skipped), 'scan-view')} skipped by the dump; training leaves their scans out:"]
    lines += [f"  {scan} view {view}: {reason}" for (scan, view), reason in list(skipped.items())[:LISTED_SCANS]]
    return lines + (["  ..."] if len(skipped) > LISTED_SCANS else [])


def contents_json(
    store: TargetStore, found: StoreContents, missing: MissingBySequence | None, skipped: Skipped
) -> dict[str, Any]:
    """The report of `info` for programs."""
    report = {
        "location": store.location,
        **found.manifest,
        "scans": found.total.scans,
        "scan_views": found.total.scan_views,
        "bytes": found.total.size,
        "sequences": {name: vars(part) for name, part in found.sequences.items()},
        "sampled_files": found.sampled,
        "unreadable_files": found.unreadable,
        "arrays": {name: vars(size) for name, size in found.arrays.items()},
        "skipped": dict(zip(named(list(skipped)), skipped.values(), strict=True)),
    }
    if missing is not None:
        names = {sequence: named(items) for sequence, items in missing.items()}
        report |= {"missing": sum(map(len, names.values())), "missing_scan_views": names}
    return report


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """A line for each problem; of missing scan-views the first ones are named, the others counted."""

    def line(problem: Problem) -> str:
        array = f"{problem.array}: " if problem.array else ""
        return printable(f"{problem.kind:<10} {problem.scan} view {problem.view}  {array}{problem.text}")

    missing = [line(problem) for problem in problems if problem.kind == "missing"]
    lines = missing[:LISTED_MISSING]
    if len(missing) > LISTED_MISSING:
        lines.append(f"{'missing':<10} and {len(missing) - LISTED_MISSING:,} more: info --data counts them")
    return lines + [line(problem) for problem in problems if problem.kind != "missing"]


def live_lines(errors: Sequence[LiveError], items: Sequence[ScanView]) -> list[str]:
    """The table of `verify --live`."""
    rows = [("array", "encoding", "relative error", "limit", "")]
    for error in errors:
        text = "other voxels" if error.error == float("inf") else f"{error.error:.1e}"
        rows.append((error.array, error.encoding, text, f"{error.limit:.1e}", "ok" if error.explained else "WRONG"))
    wrong = sum(not error.explained for error in errors)
    differs = "1 array differs" if wrong == 1 else f"{wrong} arrays differ"
    verdict = f"{differs} more than the encoding explains." if wrong else "All as the teacher says."
    head = f"Largest difference to the teacher on {count_text(len(items), 'scan-view')} ({first_named(items)}):"
    return [head, *aligned_table(rows), verdict]


def dump_lines(report: DumpReport) -> list[str]:
    """What a dump did."""
    written = f"{count_text(report.written, 'scan-view')} written ({size_text(report.size)})"
    lines = [f"{written}, {report.present:,} were there before"]
    lines += [f"skipped  {reason}" for reason in report.skipped]
    if report.skipped:
        lines.append(
            f"{count_text(len(report.skipped), 'scan-view')} skipped: training leaves their scans out. Repair them and "
            "run the same command again"
        )
    if report.left:
        lines.append(f"Stopped with {count_text(report.left, 'scan-view')} left; the same command goes on from here.")
    return lines
