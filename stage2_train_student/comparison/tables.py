"""The comparison in tables: cells for the page, Markdown to paste, CSV to compute with."""

import csv
import io
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from common.base.text import markdown_table
from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Difference, Sample

NOTHING = "\N{EN DASH}"


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
    columns: list[tuple[Column, Callable[[Result], Cell]]] = [
        (Column("seeds", "training runs that differ in their seed only"), seeds_cell),
        (Column("mIoU, %", "mean ± standard deviation over seeds"), lambda one: percent_cell(one.miou)),
        (
            Column("to the baseline", "difference of the means in points ± its standard error"),
            lambda one: gain_cell(one, largest),
        ),
        (
            Column("95 % interval", "of that difference, by Student's t, corrected for the number of comparisons"),
            lambda one: (
                Cell(one.gain.interval_text, one.gain.interval[0]) if one.gain and one.gain.interval else Cell()
            ),
        ),
        (
            Column("p", "chance of such a difference if nothing had an effect, times the number of comparisons"),
            lambda one: Cell(one.gain.p_value_text or NOTHING, one.gain.p_value) if one.gain else Cell(),
        ),
        (
            Column("agreement, %", "points that student and teacher give the same class"),
            lambda one: percent_cell(one.agreement),
        ),
        (Column("per step", "median time of a training step"), lambda one: time_cell(one.seconds_per_step.mean)),
        (
            Column("training", "sum of all steps, validation and saving left out; mean over seeds"),
            lambda one: time_cell(one.training_seconds.mean),
        ),
        (Column("peak memory", "highest of all seeds: on the GPU, or in RAM"), memory_cell),
    ]
    made = [(column, [make(result) for result in results]) for column, make in columns]
    made = [(column, cells) for column, cells in made if any(cell.value is not None for cell in cells)]
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


def class_row(name: str, cells: list[tuple[Sample, Difference | None]], largest: float) -> list[Cell]:
    """Cells of a class; `largest` is the gain of the strongest colour."""
    means = [sample.mean for sample, _ in cells if sample.mean is not None]
    row = [Cell(name, name)]
    for sample, gain in cells:
        best = len(cells) > 1 and sample.mean == max(means, default=None) and means.count(sample.mean or 0.0) == 1
        row.append(toned(percent_cell(sample), gain, largest)._replace(best=best))
    return row


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
    rows = [[Cell(text, text) for text in (name, *values)] for name, values in differing.items()]
    return Table([Column("setting"), *map(Column, names)], rows)


def runs_table(results: list[Result]) -> Table:
    """Every run folder: how far it came, what it took, and the code and device that made it."""
    columns = ["folder", "experiment", "seed", "steps", "state", "time in all", "device", "commit"]
    rows = []
    for index, result in enumerate(results):
        for run in result.experiment.runs:
            folder, made = str(run.folder), run.environment
            state = "finished" if run.finished else "not finished"
            commit = str(made.get("git_commit") or NOTHING)[:10]
            devices = ", ".join(made.get("devices") or []) or f"CPU, {made.get('threads', '?')} threads"
            device = devices if made else NOTHING
            rows.append(
                [
                    Cell(folder, folder, swatch=index),
                    Cell(result.experiment.name, result.experiment.name),
                    Cell(str(run.settings.seed), run.settings.seed),
                    Cell(f"{run.last_step:,}", run.last_step),
                    Cell(state, state),
                    time_cell(sum(record["seconds"] for record in run.costs) if run.costs else None),
                    Cell(device, device),
                    Cell(commit + ("*" if made.get("git_modified") else ""), commit),
                ]
            )
    return Table(list(map(Column, columns)), rows)


def largest_of(gains: Iterable[Difference | None]) -> float:
    """Size of the largest difference, which gets the strongest colour; 1 without any."""
    return max((abs(gain.value) for gain in gains if gain is not None), default=0.0) or 1.0


def toned(cell: Cell, gain: Difference | None, largest: float) -> Cell:
    """A cell in the colour of a gain."""
    if gain is None or gain.value == 0:
        return cell
    tone = "better" if gain.value > 0 else "worse"
    return cell._replace(tone=tone, strength=round(abs(gain.value) / largest, 2))


def name_cells(results: list[Result]) -> list[Cell]:
    """Names of experiments with their colours."""
    names = [result.experiment.name for result in results]
    return [Cell(name, name, swatch=index) for index, name in enumerate(names)]


def seeds_cell(result: Result) -> Cell:
    """How many, and which."""
    seeds = result.experiment.seeds
    return Cell(f"{len(seeds)} ({', '.join(map(str, seeds))})", len(seeds))


def percent_cell(sample: Sample) -> Cell:
    """Mean and spread of shares, in percent."""
    if sample.mean is None:
        return Cell()
    spread = "" if sample.spread is None else f" ± {100 * sample.spread:.1f}"
    return Cell(f"{100 * sample.mean:.1f}{spread}", sample.mean)


def gain_cell(result: Result, largest: float) -> Cell:
    """Difference and standard error in points; coloured where the difference is clear, `largest` the strongest."""
    gain = result.gain
    if gain is None:
        return Cell("baseline" if result.is_baseline else NOTHING)
    error = "" if gain.error is None else f" ± {100 * gain.error:.1f}"
    return toned(Cell(f"{100 * gain.value:+.1f}{error}", gain.value), gain if gain.clear else None, largest)


def time_cell(seconds: float | None) -> Cell:
    """Seconds, where they are known."""
    return Cell() if seconds is None else Cell(duration(seconds), seconds)


def memory_cell(result: Result) -> Cell:
    """Highest of all seeds."""
    highest = max(result.peak_memory.values, default=None)
    return Cell() if highest is None else Cell(gigabytes(highest), highest)


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
        "peak_memory_bytes": max(result.peak_memory.values, default=None),
    }
    for name, sample in result.iou.items():
        record |= {f"iou_mean {name}": sample.mean, f"iou_standard_deviation {name}": sample.spread}
    return record
