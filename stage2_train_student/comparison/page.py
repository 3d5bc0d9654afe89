"""The comparison as one HTML page that needs nothing but itself."""

from dataclasses import dataclass
from typing import NamedTuple

from common.scans.label_map import LabelMap
from stage2_train_student.comparison import charts, tables
from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.scan_pictures import ScanPictures
from stage2_train_student.comparison.statistics import points_text
from stage2_train_student.comparison.tables import duration, gigabytes
from stage2_train_student.comparison.verdict import Verdict, step_ratio, verdict
from stage2_train_student.evaluation.render import RIGHT, WRONG
from stage2_train_student.viewing.page import filled_page

TIMES = "\N{MULTIPLICATION SIGN}"
COLOURS = 8
"""Colours in page.css; the first is the baseline's. More experiments get dashed lines."""


@dataclass(frozen=True)
class Comparison:
    """Everything that a page shows.

    Results come with the baseline first; `scored_on` says in words which scans mIoU is about, `notes` what a reader
    must know to judge the numbers, `settings` which settings differ, by dotted name with a value for each result.
    `teacher_miou` is in 0..1, `radius` the metres that pictures show each way.
    """

    title: str
    results: list[Result]
    label_map: LabelMap
    scored_on: str
    notes: list[str]
    settings: dict[str, list[str]]
    teacher_miou: float | None
    pictures: list[ScanPictures]
    radius: float


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
    names = [result.experiment.name for result in found]
    last = max((run.last_step for result in found for run in result.experiment.runs), default=0) or 1
    return filled_page(
        __package__,
        ["page.js"],
        **vars(comparison),
        colour=lambda index: colour_class(index, has_baseline),
        sentence=answer.sentence if answer else sentence_without_baseline(found),
        tone=answer.tone if answer else "unclear",
        tiles=tiles(found, answer, comparison.teacher_miou),
        dots=charts.dot_chart(found, comparison.teacher_miou),
        summary=tables.summary_table(found),
        classes=tables.class_table(found),
        has_baseline=has_baseline,
        distances=tables.distance_table(found),
        # The official colour of each class but the ignored one.
        class_colours={info.name: hexadecimal(info.colour) for info in comparison.label_map.classes[1:]},
        right_colour=hexadecimal(RIGHT),
        wrong_colour=hexadecimal(WRONG),
        names=names,
        line_charts=charts.line_charts(found, last),
        block=charts.block_width(last),
        differing=tables.settings_table(names, comparison.settings),
        runs=tables.runs_table(found),
        size=charts,
    )


def colour_class(index: int, has_baseline: bool) -> str:
    """CSS classes of an experiment; the first colour is kept for a baseline."""
    place = index if has_baseline else index + 1
    return f"c{place % COLOURS}" + (" dashed" if place >= COLOURS else "")


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """A colour as CSS writes it."""
    return "#" + bytes(colour).hex()


def sentence_without_baseline(found: list[Result]) -> str:
    """What can be said where nothing is measured against a baseline."""
    mious = {result.experiment.name: result.miou.mean for result in found if result.miou.mean is not None}
    if not mious:
        return "No run has been validated or evaluated yet, so there is no mIoU to compare."
    name, best = max(mious.items(), key=lambda item: item[1])
    return (
        f"{name} is the best of {len(mious)} with an mIoU of {100 * best:.1f} %. "
        "Whether distillation helped cannot be said without the mIoU of a baseline, an experiment without a teacher."
    )


def tiles(found: list[Result], answer: Verdict | None, teacher_miou: float | None) -> list[Tile]:
    """The few numbers that answer whether distillation helped, by how much, and at what cost."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    baseline = next((result for result in found if result.is_baseline), None)
    if answer is None or baseline is None or answer.best.gain is None:
        mious = [(result.experiment.name, result.miou.mean) for result in found]
        return [Tile(percent(miou), "mIoU", name) for name, miou in mious if miou is not None][:4]
    best, gain, ratio = answer.best, answer.best.gain, step_ratio(answer.best, found)
    name, ours, theirs = best.experiment.name, best.miou.mean, baseline.miou.mean
    assert ours is not None
    assert theirs is not None
    sure = f"95 % interval {points_text(gain.interval)}" if gain.interval else "one seed only"
    sure = "trained otherwise, see below" if best.unlike_baseline else sure
    made = [
        Tile(f"{100 * gain.value:+.1f}", "points of mIoU", f"{sure}; {name} against the baseline"),
        Tile(percent(ours), f"mIoU of {name}", f"baseline {percent(theirs)}"),
    ]
    if ratio is not None:
        times = [duration(one.seconds_per_step.mean or 0.0) for one in (best, baseline)]
        made.append(Tile(f"{ratio:.2f} {TIMES}", "time of a step", f"{times[0]}, baseline {times[1]}"))
    memory = best.peak_memory.most, baseline.peak_memory.most
    if memory[0] and memory[1]:
        made.append(Tile(gigabytes(memory[0]), "peak memory", f"baseline {gigabytes(memory[1])}"))
    if best.agreement.mean is not None:
        known = "" if baseline.agreement.mean is None else f"baseline {percent(baseline.agreement.mean)}"
        made.append(Tile(percent(best.agreement.mean), "agreement with the teacher", known))
    if teacher_miou is not None and teacher_miou > theirs:
        share = f"{100 * gain.value / (teacher_miou - theirs):.0f} %"
        made.append(Tile(share, "of the way to the teacher", f"teacher {percent(teacher_miou)}"))
    return made
