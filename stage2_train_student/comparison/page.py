"""The comparison as one HTML page that needs nothing but itself."""

from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from common.scans.label_map import LabelMap
from stage2_train_student.comparison.charts import (
    BOTTOM,
    HEIGHT,
    LABEL_WIDTH,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    LineChart,
    dot_chart,
    line_chart,
)
from stage2_train_student.comparison.curves import block_width, recorded_terms, term_curve, validation_curve
from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.scan_pictures import ScanPictures
from stage2_train_student.comparison.tables import (
    NOTHING,
    Cell,
    Column,
    Table,
    class_table,
    distance_table,
    duration,
    gigabytes,
    settings_table,
    summary_table,
)
from stage2_train_student.comparison.verdict import Verdict, verdict
from stage2_train_student.evaluation.render import RIGHT as RIGHT_COLOUR
from stage2_train_student.evaluation.render import WRONG as WRONG_COLOUR

TIMES = "\N{MULTIPLICATION SIGN}"
COLOURS = 8
"""Colours in page.css; the first is the baseline's. More experiments get dashed lines."""


@dataclass(frozen=True)
class Comparison:
    """Everything that a page shows.

    Attributes:
        title: heading.
        results: of each experiment, the baseline first.
        label_map: classes and their colours.
        scored_on: in words, the scans that mIoU is about.
        notes: what a reader must know to judge the numbers.
        settings: dotted names of the settings that differ, with one value for each result.
        teacher_miou: in 0..1, None where it is not known.
        pictures: of some scans.
        radius: metres that pictures show each way.
    """

    title: str
    results: list[Result]
    label_map: LabelMap
    scored_on: str
    notes: list[str]
    settings: dict[str, list[str]]
    teacher_miou: float | None = None
    pictures: list[ScanPictures] = field(default_factory=list)
    radius: float = 50.0


class Tile(NamedTuple):
    """One number of the first screen."""

    number: str
    label: str
    note: str


def page(comparison: Comparison) -> str:
    """The page, as HTML with everything inside."""
    found = comparison.results
    answer = verdict(found)
    has_baseline = any(result.is_baseline for result in found)
    experiments = [result.experiment for result in found]
    dots = dot_chart(found, comparison.teacher_miou)
    names = [experiment.name for experiment in experiments]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals["colour"] = lambda index: colour_class(index, has_baseline)
    return environment.from_string(part("page.html")).render(
        css=Markup(part("page.css")),
        script=Markup(part("page.js")),
        title=comparison.title,
        dataset=comparison.label_map.name,
        scored_on=comparison.scored_on,
        sentence=answer.sentence if answer else sentence_without_baseline(found),
        tone=answer.tone if answer else "unclear",
        tiles=tiles(found, answer, comparison.teacher_miou),
        dots=None
        if dots is None
        else {**dots._asdict(), "label_end": LABEL_WIDTH - 14, "number_start": dots.width - 70},
        summary=summary_table(found),
        notes=comparison.notes,
        classes=class_table(found),
        has_baseline=has_baseline,
        distances=distance_table(found),
        class_colours=class_colours(comparison.label_map),
        pictures=comparison.pictures,
        radius=f"{comparison.radius:g}",
        right_colour=hexadecimal(RIGHT_COLOUR),
        wrong_colour=hexadecimal(WRONG_COLOUR),
        names=names,
        validation=validation_chart(found),
        terms=term_charts(found),
        block=block_width(last_step(found)),
        settings=settings_table(names, comparison.settings),
        runs=runs_table(found),
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def part(name: str) -> str:
    """A file that lies beside this module."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def colour_class(index: int, has_baseline: bool) -> str:
    """CSS classes of an experiment; the first colour is kept for a baseline."""
    place = index if has_baseline else index + 1
    return f"c{place % COLOURS}" + (" dashed" if place >= COLOURS else "")


def sentence_without_baseline(found: list[Result]) -> str:
    """What can be said where nothing is measured against a baseline."""
    scored = [result for result in found if result.miou.mean is not None]
    if not scored:
        return "No run has been validated or evaluated yet, so there is no mIoU to compare."
    best = max(scored, key=lambda result: result.miou.mean or 0.0)
    return (
        f"{best.experiment.name} is the best of {len(scored)} with an mIoU of {100 * (best.miou.mean or 0):.1f} %. "
        "Whether distillation helped cannot be said without the mIoU of a baseline, an experiment without a teacher."
    )


def tiles(found: list[Result], answer: Verdict | None, teacher_miou: float | None) -> list[Tile]:
    """The few numbers that answer whether distillation helped, by how much, and at what cost."""
    baseline = next((result for result in found if result.is_baseline), None)
    if answer is None or baseline is None or answer.best.gain is None:
        return [
            Tile(f"{100 * (result.miou.mean or 0):.1f} %", "mIoU", result.experiment.name)
            for result in found
            if result.miou.mean is not None
        ][:4]
    best, gain = answer.best, answer.best.gain
    name = best.experiment.name
    made = [Tile(f"{100 * gain.value:+.1f}", "points of mIoU", f"{certainty(best)}; {name} against the baseline")]
    assert best.miou.mean is not None
    assert baseline.miou.mean is not None
    made.append(Tile(f"{100 * best.miou.mean:.1f} %", f"mIoU of {name}", f"baseline {100 * baseline.miou.mean:.1f} %"))
    if best.seconds_per_step.mean and baseline.seconds_per_step.mean:
        ratio = best.seconds_per_step.mean / baseline.seconds_per_step.mean
        note = f"{duration(best.seconds_per_step.mean)}, baseline {duration(baseline.seconds_per_step.mean)}"
        made.append(Tile(f"{ratio:.2f} {TIMES}", "time of a step", note))
    if best.peak_memory.values and baseline.peak_memory.values:
        note = f"baseline {gigabytes(max(baseline.peak_memory.values))}"
        made.append(Tile(gigabytes(max(best.peak_memory.values)), "peak memory", note))
    if best.agreement.mean is not None:
        known = "" if baseline.agreement.mean is None else f"baseline {100 * baseline.agreement.mean:.1f} %"
        made.append(Tile(f"{100 * best.agreement.mean:.1f} %", "agreement with the teacher", known))
    if teacher_miou is not None and teacher_miou > baseline.miou.mean:
        share = gain.value / (teacher_miou - baseline.miou.mean)
        note = f"teacher {100 * teacher_miou:.1f} %"
        made.append(Tile(f"{100 * share:.0f} %", "of the way to the teacher", note))
    return made


def certainty(result: Result) -> str:
    """How sure the gain of a result is, in a few words."""
    if result.unlike_baseline:
        return "trained otherwise, see below"
    if result.gain is None or result.gain.interval is None:
        return "one seed only"
    low, high = result.gain.interval
    return f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"


def validation_chart(found: list[Result]) -> LineChart | None:
    """mIoU of the validations."""
    curves = [(index, validation_curve(result.experiment)) for index, result in enumerate(found)]
    drawn = [(index, curve) for index, curve in curves if curve is not None and len(curve.steps)]
    return line_chart("validation mIoU, %", drawn, last_step(found)) if drawn else None


def term_charts(found: list[Result]) -> list[LineChart]:
    """One chart for each number that steps record."""
    charts, last = [], last_step(found)
    for term in recorded_terms(result.experiment for result in found):
        curves = [
            (index, term_curve(result.experiment, term, block_width(last_step(found))))
            for index, result in enumerate(found)
        ]
        drawn = [(index, curve) for index, curve in curves if curve is not None and len(curve.steps)]
        if drawn:
            charts.append(line_chart(term.replace("_", " "), drawn, last))
    return charts


def last_step(found: list[Result]) -> int:
    """Of the longest run."""
    return max((run.steps[-1]["step"] for one in found for run in one.experiment.runs if run.steps), default=1)


def runs_table(found: list[Result]) -> Table:
    """Every run folder: how far it came, what it took, and the code and device that made it."""
    columns = ["folder", "experiment", "seed", "steps", "state", "time in all", "device", "commit"]
    rows = []
    for index, result in enumerate(found):
        for run in result.experiment.runs:
            steps = run.steps[-1]["step"] if run.steps else 0
            in_all = sum(record["seconds"] for record in run.costs)
            commit = str(run.environment.get("git_commit") or NOTHING)[:10]
            state = "finished" if run.finished else "not finished"
            rows.append(
                [
                    Cell(str(run.folder), str(run.folder), swatch=index),
                    Cell(result.experiment.name, result.experiment.name),
                    Cell(str(run.settings.seed), run.settings.seed),
                    Cell(f"{steps:,}", steps),
                    Cell(state, state),
                    Cell(duration(in_all) if run.costs else NOTHING, in_all if run.costs else None),
                    Cell(machine(run.environment), machine(run.environment)),
                    Cell(commit + ("*" if run.environment.get("git_modified") else ""), commit),
                ]
            )
    return Table([Column(name) for name in columns], rows)


def machine(environment: dict[str, Any]) -> str:
    """The device of a run, as far as it is recorded."""
    if not environment:
        return NOTHING
    devices = ", ".join(environment.get("devices") or [])
    return devices or f"CPU, {environment.get('threads', '?')} threads"


def class_colours(label_map: LabelMap) -> dict[str, str]:
    """Official colour of each class but the ignored one, as CSS writes it."""
    return {info.name: hexadecimal(info.colour) for info in label_map.classes[1:]}


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """A colour as CSS writes it."""
    return "#" + bytes(colour).hex()
