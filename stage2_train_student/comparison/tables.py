"""The comparison in tables: cells for the page, Markdown to paste, CSV to compute with."""

import csv
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Difference, Sample

NOTHING = "\N{EN DASH}"
PLUS_MINUS = "±"


class Cell(NamedTuple):
    """One cell.

    Attributes:
        text: shown.
        value: that the page sorts by; None sorts last.
        tone: `better` or `worse` than the baseline, or empty.
        strength: of the tone, in 0..1.
        best: whether it is the highest of its row.
        swatch: number of the experiment whose colour is shown before the text, None for none.
    """

    text: str
    value: float | str | None = None
    tone: str = ""
    strength: float = 0.0
    best: bool = False
    swatch: int | None = None


class Column(NamedTuple):
    """A heading and what it means."""

    name: str
    meaning: str = ""


class Table(NamedTuple):
    """Headings and rows of as many cells."""

    columns: list[Column]
    rows: list[list[Cell]]


def summary_table(results: list[Result]) -> Table:
    """One row for each experiment; columns that nobody has a value for are left out."""
    largest = max((abs(result.gain.value) for result in results if result.gain), default=0.0) or 1.0
    columns: list[tuple[Column, Callable[[int, Result], Cell]]] = [
        (
            Column("experiment"),
            lambda index, result: Cell(result.experiment.name, result.experiment.name, swatch=index),
        ),
        (Column("seeds", "training runs that differ in their seed only"), lambda _, result: seeds_cell(result)),
        (
            Column("mIoU, %", "mean ± standard deviation over seeds"),
            lambda _, result: percent_cell(result.miou),
        ),
        (
            Column("to the baseline", "difference of the means in points ± its standard error"),
            lambda _, result: gain_cell(result.gain, result.is_baseline, largest),
        ),
        (
            Column("95 % interval", "of that difference, by Student's t, corrected for the number of comparisons"),
            lambda _, result: interval_cell(result.gain),
        ),
        (
            Column("p", "chance of such a difference if nothing had an effect, times the number of comparisons"),
            lambda _, result: p_value_cell(result.gain),
        ),
        (
            Column("agreement, %", "points that student and teacher give the same class"),
            lambda _, result: percent_cell(result.agreement),
        ),
        (Column("per step", "median time of a training step"), lambda _, result: time_cell(result.seconds_per_step)),
        (
            Column("training", "sum of all steps, validation and saving left out; mean over seeds"),
            lambda _, result: time_cell(result.training_seconds),
        ),
        (Column("peak memory", "highest of all seeds: on the GPU, or in RAM"), lambda _, result: memory_cell(result)),
    ]
    filled = [(column, [make(index, result) for index, result in enumerate(results)]) for column, make in columns]
    kept = [(column, cells) for column, cells in filled if any(cell.value is not None for cell in cells)]
    return Table([column for column, _ in kept], [list(row) for row in zip(*(cells for _, cells in kept), strict=True)])


def class_table(results: list[Result]) -> Table:
    """One row for each class with a value, one column for each experiment; coloured by the gain on the baseline."""
    names = [name for name in results[0].iou if any(result.iou[name].values for result in results)]
    gains = [gain.value for result in results for gain in result.iou_gain.values() if gain is not None]
    rows = [class_row(name, [(result.iou[name], result.iou_gain[name]) for result in results], gains) for name in names]
    if rows:
        mean_gains = [result.gain.value for result in results if result.gain]
        rows.append(class_row("mean", [(result.miou, result.gain) for result in results], mean_gains))
    return Table([Column("class"), *(Column(result.experiment.name) for result in results)], rows)


def class_row(name: str, cells: list[tuple[Sample, Difference | None]], gains: list[float]) -> list[Cell]:
    """Cells of a class; `gains` sets the scale of the colours."""
    largest = max((abs(gain) for gain in gains), default=0.0) or 1.0
    means = [sample.mean for sample, _ in cells if sample.mean is not None]
    highest = max(means, default=None)
    row = [Cell(name, name)]
    for sample, gain in cells:
        tone = "" if gain is None or gain.value == 0 else "better" if gain.value > 0 else "worse"
        strength = abs(gain.value) / largest if gain is not None else 0.0
        best = len(cells) > 1 and sample.mean == highest and means.count(sample.mean or 0.0) == 1
        row.append(percent_cell(sample)._replace(tone=tone, strength=round(strength, 2), best=best))
    return row


def distance_table(results: list[Result]) -> Table | None:
    """mIoU by distance from the sensor; None where it was not recorded."""
    starts = sorted({start for result in results for start in result.miou_by_distance})
    if not starts:
        return None
    ends = [*starts[1:], None]
    names = [
        f"{start:.0f}+ m" if end is None else f"{start:.0f}-{end:.0f} m"
        for start, end in zip(starts, ends, strict=True)
    ]
    rows = [
        [
            Cell(result.experiment.name, result.experiment.name, swatch=index),
            *(percent_cell(result.miou_by_distance.get(start, Sample(()))) for start in starts),
        ]
        for index, result in enumerate(results)
    ]
    return Table([Column("mIoU, %"), *map(Column, names)], rows)


def settings_table(names: list[str], differing: dict[str, list[str]]) -> Table:
    """One row for each setting that differs, one column for each experiment."""
    rows = [[Cell(name, name), *(Cell(value, value) for value in values)] for name, values in differing.items()]
    return Table([Column("setting"), *map(Column, names)], rows)


def seeds_cell(result: Result) -> Cell:
    """How many, and which."""
    seeds = ", ".join(map(str, result.experiment.seeds))
    return Cell(f"{len(result.experiment.runs)} ({seeds})", len(result.experiment.runs))


def percent_cell(sample: Sample) -> Cell:
    """Mean and spread of shares, in percent."""
    if sample.mean is None:
        return Cell(NOTHING)
    spread = "" if sample.spread is None else f" {PLUS_MINUS} {100 * sample.spread:.1f}"
    return Cell(f"{100 * sample.mean:.1f}{spread}", sample.mean)


def gain_cell(gain: Difference | None, is_baseline: bool, largest: float) -> Cell:
    """Difference and standard error in points; coloured where the difference is clear, `largest` the strongest."""
    if gain is None:
        return Cell("baseline" if is_baseline else NOTHING)
    error = "" if gain.error is None else f" {PLUS_MINUS} {100 * gain.error:.1f}"
    tone = ("better" if gain.value > 0 else "worse") if gain.clear else ""
    return Cell(f"{100 * gain.value:+.1f}{error}", gain.value, tone, round(abs(gain.value) / largest, 2))


def interval_cell(gain: Difference | None) -> Cell:
    """Differences that fit the runs, in points; nothing where the difference was not tested."""
    if gain is None or gain.interval is None:
        return Cell(NOTHING)
    low, high = gain.interval
    return Cell(f"{100 * low:+.1f} to {100 * high:+.1f}", low)


def p_value_cell(gain: Difference | None) -> Cell:
    """The corrected p-value; nothing where the difference was not tested."""
    if gain is None or gain.p_value is None:
        return Cell(NOTHING)
    return Cell("< 0.001" if gain.p_value < 0.001 else f"{gain.p_value:.2g}", gain.p_value)


def time_cell(sample: Sample) -> Cell:
    """Mean of seconds."""
    return Cell(NOTHING if sample.mean is None else duration(sample.mean), sample.mean)


def memory_cell(result: Result) -> Cell:
    """Highest of all seeds."""
    highest = max(result.peak_memory.values, default=None)
    return Cell(NOTHING if highest is None else gigabytes(highest), highest)


def gigabytes(count: float) -> str:
    """Bytes as GB (10^9)."""
    return f"{count / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """Seconds as text with two or three digits."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def markdown(table: Table) -> str:
    """A table in Markdown; cells that hold its own signs are escaped."""

    def line(words: list[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|").replace("\n", " ") for word in words) + " |"

    head = [line([column.name for column in table.columns]), line(["---"] * len(table.columns))]
    return "\n".join([*head, *(line([cell.text for cell in row]) for row in table.rows)]) + "\n"


def csv_text(results: list[Result]) -> str:
    """One line for each experiment with everything in full precision: shares in 0..1, seconds, bytes."""
    records = [csv_record(result) for result in results]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def csv_record(result: Result) -> dict[str, Any]:
    """Names and values of one experiment; None where nothing is known."""
    record: dict[str, Any] = {
        "experiment": result.experiment.name,
        "baseline": int(result.is_baseline),
        "seeds": " ".join(map(str, result.experiment.seeds)),
        "miou_mean": result.miou.mean,
        "miou_standard_deviation": result.miou.spread,
        "miou_gain": result.gain.value if result.gain else None,
        "miou_gain_standard_error": result.gain.error if result.gain else None,
        "miou_gain_interval_low": result.gain.interval[0] if result.gain and result.gain.interval else None,
        "miou_gain_interval_high": result.gain.interval[1] if result.gain and result.gain.interval else None,
        "miou_gain_p_value": result.gain.p_value if result.gain else None,
        "unlike_baseline": "; ".join(result.unlike_baseline),
        "agreement_mean": result.agreement.mean,
        "seconds_per_step": result.seconds_per_step.mean,
        "training_seconds": result.training_seconds.mean,
        "peak_memory_bytes": max(result.peak_memory.values, default=None),
    }
    for name, sample in result.iou.items():
        record[f"iou_mean {name}"] = sample.mean
        record[f"iou_standard_deviation {name}"] = sample.spread
    return record
