"""What the commands of stage one print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.base.text import printable
from common.scans.scan_id import ScanId
from common.targets.store import ScanView, TargetStore
from common.targets.store.contents import Provenance, StoreContents
from common.targets.store.maintenance import Problem
from common.targets.store.skipped import Skipped

if TYPE_CHECKING:
    # These come with the teacher, which these lines do not need.
    from stage1_dump_teacher.scan_writer import DumpReport
    from stage1_dump_teacher.store_care.live_check import LiveError

LISTED_SCANS = 5
"""Missing scan-views of a sequence that `info` names one by one."""

LISTED_MISSING = 20
"""Missing scan-views that `verify` names one by one."""


def size_text(size: float) -> str:
    """Bytes for people: `4.3 MB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def count_text(count: int, noun: str) -> str:
    """`1 scan`, `2 scans`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of aligned columns, indented; the first column is text, the others end on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def completeness(store: TargetStore, held: set[ScanView], scans: Sequence[ScanId]) -> dict[str, list[ScanView]]:
    """Scan-views of each sequence of a dataset that a store does not hold yet."""
    missing: dict[str, list[ScanView]] = {scan.sequence: [] for scan in scans}
    for scan in scans:
        for view in range(store.identity.views.count):
            if (scan, view) not in held:
                missing[scan.sequence].append((scan, view))
    return missing


def contents_lines(store: TargetStore, found: StoreContents) -> list[str]:
    """The report of `info`, without completeness."""
    identity, made, total = store.identity, found.provenance, found.total
    grid = identity.grid
    ranges = ", ".join(
        f"{name} {low:.2f}..{high:.2f}"
        for name, low, high in zip(("rho", "phi", "z"), grid.minimum, grid.maximum, strict=True)
    )
    encoding = identity.encoding
    versions = ", ".join(f"{name} {version}" for name, version in made.packages.items() if version)
    lines = [
        f"store      {store.location}  (format {identity.format_version}, identity {identity.hash[:12]})",
        f"made       {found.manifest['made']} with polar-distill {made.project}"
        + (f", commit {made.git_commit[:12]}" if made.git_commit else ""),
        f"packages   {versions}",
        f"teacher    {identity.teacher_hash}",
        f"grid       {' x '.join(map(str, grid.shape))} bins over {ranges}",
        f"classes    {len(identity.classes)}",
        f"layers     {', '.join(f'{name} ({channels})' for name, channels in identity.layers.items())}",
        f"encoding   pillar features {encoding.pillar_features}, logits {encoding.logits}, voxel features "
        + (encoding.voxel_features if identity.voxel_features else "not kept")
        + f"; codec {encoding.codec}"
        + ("" if encoding.codec == "none" else f" level {encoding.level}"),
        f"views      {identity.views.describe()}",
    ]
    if identity.precision != "float32":
        lines.append(f"precision  {identity.precision}")
    lines += [f"from       {text}" for text in origins(made)]
    if not total.scan_views:
        return [*map(printable, lines), "", "The store is empty so far."]
    rows = [("sequence", "scans", "scan-views", "size")]
    sequences = [*found.sequences.items(), ("all", total)] if len(found.sequences) > 1 else found.sequences.items()
    rows += [(name, f"{part.scans:,}", f"{part.scan_views:,}", size_text(part.size)) for name, part in sequences]
    return [*map(printable, lines), "", *map(printable, table(rows)), "", *map(printable, array_lines(found))]


def origins(provenance: Provenance) -> list[str]:
    """Stores that a store was converted or merged from."""
    converted = provenance.converted_from
    texts = [f"converted from {converted.location}, made {converted.made}"] if converted else []
    return texts + [f"merged from {part.location}, made {part.made}" for part in provenance.merged_from]


def array_lines(found: StoreContents) -> list[str]:
    """Sizes of arrays, as a table."""
    readable = found.sampled - found.unreadable
    if not readable:
        return [
            f"None of {count_text(found.sampled, 'sampled scan file')} could be read as one of this store: run verify."
        ]
    rows = [("array", "encoding", "stored", "codec", "float32")]
    arrays = found.arrays
    for name, size in arrays.items():
        coordinates = size.encoding == "uint32"
        against = "" if coordinates else times(size.plain, size.stored)
        rows.append((name, size.encoding, size_text(size.stored), times(size.uncompressed, size.stored), against))
    stored, uncompressed, plain = (
        sum(getattr(size, field) for size in arrays.values()) for field in ("stored", "uncompressed", "plain")
    )
    rows.append(("all", "", size_text(stored), times(uncompressed, stored), times(plain, stored)))
    lines = [
        f"Mean sizes in {count_text(readable, 'sampled scan file')}; how many times smaller than the encoded numbers "
        "(codec) and than",
        "float32 numbers (float32). Scales are counted with their array.",
        *table(rows),
    ]
    if found.unreadable:
        unreadable = count_text(found.unreadable, "sampled scan file")
        lines.append(f"{unreadable} could not be read as one of this store: run verify.")
    return lines


def times(larger: float, smaller: float) -> str:
    """How many times one size is another: `2.5 x`."""
    return f"{larger / smaller:.1f} x" if smaller else ""


def completeness_lines(missing: dict[str, list[ScanView]], expected: int, mean_size: float) -> list[str]:
    """How complete a store is for a dataset."""
    left = sum(map(len, missing.values()))
    if not left:
        return [f"complete   {count_text(expected, 'scan-view')} of DATA, none is missing"]
    share = 100 * (expected - left) / expected
    lines = [f"complete   {share:.1f} %: {left:,} of {count_text(expected, 'scan-view')} of DATA are missing"]
    if mean_size:
        lines[0] += f" (about {size_text(mean_size * left)})"
    for sequence, items in missing.items():
        if items:
            named = ", ".join(f"{scan} view {view}" for scan, view in items[:LISTED_SCANS])
            lines.append(f"  {sequence}: {len(items):,} missing: {named}{', ...' if len(items) > LISTED_SCANS else ''}")
    return [*lines, "  make dump-teacher dumps exactly these."]


def skipped_lines(skipped: Skipped) -> list[str]:
    """Scan-views that the dump could not use, the first ones with the reason."""
    lines = [f"{count_text(len(skipped), 'scan-view')} skipped by the dump; training leaves their scans out:"]
    lines += [f"  {scan} view {view}: {reason}" for (scan, view), reason in list(skipped.items())[:LISTED_SCANS]]
    return lines + (["  ..."] if len(skipped) > LISTED_SCANS else [])


def contents_json(
    store: TargetStore,
    found: StoreContents,
    missing: dict[str, list[ScanView]] | None,
    skipped: Skipped,
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
        "skipped": {f"{scan} view {view}": reason for (scan, view), reason in skipped.items()},
    }
    if missing is not None:
        names = {sequence: [f"{scan} view {view}" for scan, view in items] for sequence, items in missing.items()}
        report |= {"missing": sum(map(len, missing.values())), "missing_scan_views": names}
    return report


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """A line for each problem; of missing scan-views the first ones are named, the others counted."""
    missing = [problem for problem in problems if problem.kind == "missing"]
    lines = [problem_line(problem) for problem in missing[:LISTED_MISSING]]
    if len(missing) > LISTED_MISSING:
        lines.append(f"{'missing':<10} and {len(missing) - LISTED_MISSING:,} more: info --data counts them")
    return lines + [problem_line(problem) for problem in problems if problem.kind != "missing"]


def problem_line(problem: Problem) -> str:
    """One line about one scan-view."""
    array = f"{problem.array}: " if problem.array else ""
    return printable(f"{problem.kind:<10} {problem.scan} view {problem.view}  {array}{problem.text}")


def unsigned_line(count: int) -> str:
    """What `verify` could not find out about files that were written before they had the hash of their store."""
    return (
        f"note       {count_text(count, 'scan file')} of an earlier version without the hash of the store's identity: "
        "volume and policy of views could not be compared"
    )


def live_lines(errors: Sequence["LiveError"], items: Sequence[ScanView]) -> list[str]:
    """The table of `verify --live`."""
    named = ", ".join(f"{scan} view {view}" for scan, view in items[:LISTED_SCANS])
    rows = [("array", "encoding", "relative error", "limit", "")]
    for error in errors:
        text = "other voxels" if error.error == float("inf") else f"{error.error:.1e}"
        rows.append((error.array, error.encoding, text, f"{error.limit:.1e}", "ok" if error.explained else "WRONG"))
    wrong = sum(not error.explained for error in errors)
    differs = "1 array differs" if wrong == 1 else f"{wrong} arrays differ"
    verdict = f"{differs} more than the encoding explains." if wrong else "All as the teacher says."
    more = ", ..." if len(items) > LISTED_SCANS else ""
    head = f"Largest difference to the teacher on {count_text(len(items), 'scan-view')} ({named}{more}):"
    return [head, *table(rows), verdict]


def dump_lines(report: "DumpReport") -> list[str]:
    """What a dump did."""
    lines = [
        f"{count_text(report.written, 'scan-view')} written ({size_text(report.size)}), "
        f"{report.present:,} were there before"
    ]
    lines += [f"skipped  {reason}" for reason in report.skipped]
    if report.skipped:
        lines.append(
            f"{count_text(len(report.skipped), 'scan-view')} skipped: training leaves their scans out. Repair them and "
            "run the same command again"
        )
    if report.left:
        lines.append(f"Stopped with {count_text(report.left, 'scan-view')} left; the same command goes on from here.")
    return lines
