"""The comparison in tables: cells for the page, Markdown to paste, CSV to compute with."""

import csv
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from common.base.text import markdown_table
from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Difference, Sample, p_value_text, points_text

NOTHING = "\N{EN DASH}"


class Cell(NamedTuple):
    """One cell: the text shown, and the value that the page sorts by; None sorts last.

    Attributes:
        tone: `better` or `worse` than the baseline, or empty; with a strength in 0..1.
        best: whether it is the highest of its row.
        swatch: number of the experiment whose colour is shown before the text, None for none.
    """

    text: str = NOTHING
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

    def markdown(self) -> str:
        """The table in Markdown."""
        cells = [[column.name for column in self.columns], *([cell.text for cell in row] for row in self.rows)]
        return "\n".join(markdown_table(cells)) + "\n"


def summary_table(results: list[Result]) -> Table:
    """One row for each experiment; columns that nobody has a value for are left out."""
    largest = largest_of(result.gain for result in results)
    columns: list[tuple[str, str, Callable[[Result], Cell]]] = [
        ("seeds", "training runs that differ in their seed only", seeds_cell),
        ("mIoU, %", "mean ± standard deviation over seeds", lambda one: percent_cell(one.miou)),
        ("to the baseline", "difference of the means in points ± its standard error", partial(gain_cell, largest)),
        ("95 % interval", "of that difference, by Student's t, corrected for the number of comparisons", interval_cell),
        (
            "p",
            "chance of such a difference if nothing had an effect, times the number of comparisons",
            lambda one: cell(one.gain and one.gain.p_value, p_value_text),
        ),
        ("agreement, %", "points whose class student and teacher agree on", lambda one: percent_cell(one.agreement)),
        ("per step", "median time of a training step", lambda one: cell(one.seconds_per_step.mean, duration)),
        (
            "training",
            "sum of all steps, validation and saving left out; mean over seeds",
            lambda one: cell(one.training_seconds.mean, duration),
        ),
        (
            "peak memory",
            "highest of all seeds: on the GPU, or in RAM",
            lambda one: cell(one.peak_memory.most, gigabytes),
        ),
    ]
    made = [(Column(name, meaning), list(map(make, results))) for name, meaning, make in columns]
    made = [(column, cells) for column, cells in made if any(one.value is not None for one in cells)]
    rows = zip(name_cells(results), *(cells for _, cells in made), strict=True)
    return Table([Column("experiment"), *(column for column, _ in made)], list(map(list, rows)))


def class_table(results: list[Result]) -> Table:
    """One row for each class with a value, one column for each experiment; coloured by the gain on the baseline."""
    names = [name for name in results[0].iou if any(result.iou[name].values for result in results)]
    largest = largest_of(gain for result in results for gain in result.iou_gain.values())
    rows = [class_row(name, [(one.iou[name], one.iou_gain[name]) for one in results], largest) for name in names]
    if rows:
        means = [(result.miou, result.gain) for result in results]
        rows.append(class_row("mean", means, largest_of(result.gain for result in results)))
    return Table([Column("class"), *(Column(result.experiment.name) for result in results)], rows)


def class_row(name: str, samples: list[tuple[Sample, Difference | None]], largest: float) -> list[Cell]:
    """Cells of a class, the highest marked where it is the only one; `largest` is the gain of the strongest colour."""
    cells = [toned(percent_cell(sample), gain, largest) for sample, gain in samples]
    means = [sample.mean for sample, _ in samples]
    highest = max((mean for mean in means if mean is not None), default=None)
    if highest is not None and len(means) > 1 and means.count(highest) == 1:
        best = means.index(highest)
        cells[best] = cells[best]._replace(best=True)
    return [cell(name), *cells]


def distance_table(results: list[Result]) -> Table | None:
    """mIoU by distance from the sensor; None where it was not recorded."""
    starts = sorted({start for result in results for start in result.miou_by_distance})
    if not starts:
        return None
    ends = [f"-{end:.0f} m" for end in starts[1:]] + ["+ m"]
    names = [f"{start:.0f}{end}" for start, end in zip(starts, ends, strict=True)]
    rows = [
        [name, *(percent_cell(result.miou_by_distance.get(start, Sample())) for start in starts)]
        for name, result in zip(name_cells(results), results, strict=True)
    ]
    return Table([Column("mIoU, %"), *map(Column, names)], rows)


def settings_table(names: list[str], differing: dict[str, list[str]]) -> Table:
    """One row for each setting that differs, one column for each experiment."""
    rows = [[cell(text) for text in (name, *values)] for name, values in differing.items()]
    return Table([Column("setting"), *map(Column, names)], rows)


def runs_table(results: list[Result]) -> Table:
    """Every run folder: how far it came, what it took, and the code and device that made it."""
    columns = ["folder", "experiment", "seed", "steps", "state", "time in all", "device", "commit"]
    rows = []
    for index, result in enumerate(results):
        for run in result.experiment.runs:
            made = run.environment
            devices = ", ".join(made.get("devices") or []) or f"CPU, {made.get('threads', '?')} threads"
            commit = str(made.get("git_commit") or NOTHING)[:10] + ("*" if made.get("git_modified") else "")
            cells = [
                cell(run.folder)._replace(swatch=index),
                cell(result.experiment.name),
                cell(run.settings.seed),
                cell(run.last_step, "{:,}".format),
                cell("finished" if run.finished else "not finished"),
                cell(sum(record["seconds"] for record in run.costs) if run.costs else None, duration),
                cell(devices if made else NOTHING),
                cell(commit),
            ]
            rows.append(cells)
    return Table(list(map(Column, columns)), rows)


def largest_of(gains: Iterable[Difference | None]) -> float:
    """Size of the largest difference, which gets the strongest colour; 1 without any."""
    return max((abs(gain.value) for gain in gains if gain is not None), default=0.0) or 1.0


def cell(value: Any, text: Callable[[Any], str] = str) -> Cell:
    """A value as `text` writes it; a dash for None."""
    return Cell() if value is None else Cell(text(value), value if isinstance(value, int | float) else str(value))


def toned(plain: Cell, gain: Difference | None, largest: float) -> Cell:
    """A cell in the colour of a gain."""
    if gain is None or gain.value == 0:
        return plain
    tone = "better" if gain.value > 0 else "worse"
    return plain._replace(tone=tone, strength=round(abs(gain.value) / largest, 2))


def name_cells(results: list[Result]) -> list[Cell]:
    """Names of experiments with their colours."""
    return [cell(result.experiment.name)._replace(swatch=index) for index, result in enumerate(results)]


def seeds_cell(result: Result) -> Cell:
    """How many, and which."""
    return cell(len(result.experiment.seeds), lambda count: f"{count} ({', '.join(map(str, result.experiment.seeds))})")


def percent_cell(sample: Sample) -> Cell:
    """Mean and spread of shares, in percent."""
    spread = "" if sample.spread is None else f" ± {100 * sample.spread:.1f}"
    return cell(sample.mean, lambda mean: f"{100 * mean:.1f}{spread}")


def gain_cell(largest: float, result: Result) -> Cell:
    """Difference and standard error in points; coloured where the difference is clear, `largest` the strongest."""
    gain = result.gain
    if gain is None:
        return Cell("baseline" if result.is_baseline else NOTHING)
    error = "" if gain.error is None else f" ± {100 * gain.error:.1f}"
    return toned(Cell(f"{100 * gain.value:+.1f}{error}", gain.value), gain if gain.clear else None, largest)


def interval_cell(result: Result) -> Cell:
    """Differences that fit the runs, in points; nothing where the difference was not tested."""
    interval = result.gain and result.gain.interval
    return Cell(points_text(interval), interval[0]) if interval else Cell()


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
    gain = result.gain
    low, high = (gain and gain.interval) or (None, None)
    record: dict[str, Any] = {
        "experiment": result.experiment.name,
        "baseline": int(result.is_baseline),
        "seeds": " ".join(map(str, result.experiment.seeds)),
        "miou_mean": result.miou.mean,
        "miou_standard_deviation": result.miou.spread,
        "miou_gain": gain and gain.value,
        "miou_gain_standard_error": gain and gain.error,
        "miou_gain_interval_low": low,
        "miou_gain_interval_high": high,
        "miou_gain_p_value": gain and gain.p_value,
        "unlike_baseline": "; ".join(result.unlike_baseline),
        "agreement_mean": result.agreement.mean,
        "seconds_per_step": result.seconds_per_step.mean,
        "training_seconds": result.training_seconds.mean,
        "peak_memory_bytes": result.peak_memory.most,
    }
    for name, sample in result.iou.items():
        record |= {f"iou_mean {name}": sample.mean, f"iou_standard_deviation {name}": sample.spread}
    return record
