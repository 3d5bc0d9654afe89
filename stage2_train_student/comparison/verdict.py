"""The answer in words: whether the best experiment beats the baseline, how sure that is, and what it rests on."""

import math
from typing import Literal, NamedTuple

from common.base.text import count_text
from common.scans.label_map import LabelMap
from stage2_train_student.comparison.fairness import unrecorded
from stage2_train_student.comparison.results import Result, Source
from stage2_train_student.comparison.statistics import Difference, p_value_text, points_text
from stage2_train_student.comparison.training_runs import TrainingRun


class Verdict(NamedTuple):
    """Whether distillation helped and how sure that is, in a sentence, and the experiment of the largest gain."""

    sentence: str
    best: Result
    tone: Literal["better", "worse", "unclear"]


def verdict(found: list[Result]) -> Verdict | None:
    """Whether the best experiment beats the baseline; None where there is nothing to compare.

    Experiments that trained otherwise than the baseline, in more than their teacher, get no verdict.
    """
    compared = [result for result in found if result.gain is not None]
    if not compared:
        return None
    fair = [result for result in compared if not result.unlike_baseline]
    best = max(fair or compared, key=lambda result: result.gain.value if result.gain else -math.inf)
    gain = best.gain
    assert gain is not None
    who = f"{best.experiment.name}, the best of {len(fair)}," if len(fair) > 1 else best.experiment.name
    fact = f"{who} is {abs(100 * gain.value):.1f} points of mIoU {'above' if gain.value >= 0 else 'below'} the baseline"
    if not fair:
        why = f"did not train as the baseline did ({best.unlike_baseline[0]}), so the difference may be due to that"
        return Verdict(f"No verdict: {fact}, but {why}.", best, "unclear")
    if gain.error is None:
        chance = "but without several seeds on both sides that cannot be told from chance"
        return Verdict(f"Not known: {fact}, {chance}.", best, "unclear")
    if not gain.clear:
        return Verdict(f"No clear difference: {fact}, which may be chance: {how_sure(gain)}.", best, "unclear")
    if gain.value > 0:
        ratio = step_ratio(best, found)
        cost = "" if ratio is None else f", at {ratio:.2f} times the time of a step"
        return Verdict(f"Yes: {fact}{cost}: {how_sure(gain)}.", best, "better")
    return Verdict(f"No: {fact}: {how_sure(gain)}.", best, "worse")


def how_sure(gain: Difference) -> str:
    """The interval and the p-value of a tested difference, in words."""
    assert gain.interval is not None
    assert gain.p_value is not None
    corrected = f", corrected for {gain.comparisons} comparisons" if gain.comparisons > 1 else ""
    chance = f"p {'' if gain.p_value < 0.001 else '= '}{p_value_text(gain.p_value)}"
    return f"95 % interval {points_text(gain.interval)}, {chance}{corrected}"


def step_ratio(result: Result, found: list[Result]) -> float | None:
    """The time of a step as a multiple of the baseline's; None where it is not known."""
    baseline = next((other.seconds_per_step.mean for other in found if other.is_baseline), None)
    ours = result.seconds_per_step.mean
    return ours / baseline if ours and baseline else None


def notes(found: list[Result], source: Source, label_map: LabelMap) -> list[str]:
    """What a reader must know to judge the numbers, a sentence or two each."""
    runs = [run for result in found for run in result.experiment.runs]
    lines = about_runs("Not finished", [run for run in runs if not run.finished])
    if source == "evaluation":
        lines.append("mIoU and IoU are those of evaluate, kept in each run's evaluation.json.")
    else:
        lines.append(
            "mIoU and IoU are those of each run's best validation, the one that chose the student; as the best of "
            "several it is a little optimistic."
        )
        lacking = [run for run in runs if run.evaluated() is None]
        if len(lacking) < len(runs):
            lines += about_runs("Not evaluated, so that evaluations are not shown", lacking)
    outdated = [run for run in runs if run.evaluation_problem is not None]
    lines += about_runs("Evaluations that cannot be used are left out", outdated)
    chosen_on = sorted({name for run in runs for name in run.chosen_on(label_map)})
    if source == "evaluation" and chosen_on:
        lines.append(
            f"Students were chosen by their mIoU on {', '.join(chosen_on)}, and are scored there too: as the best of "
            "several validations it is a little optimistic."
        )
    lines += [*how_tested(found), *how_alike(found)]
    if len({str([run.environment.get(key) for key in ("devices", "threads", "platform")]) for run in runs}) > 1:
        lines.append(
            "The runs were made on different machines or with different numbers of threads: their times cannot "
            "be compared."
        )
    if any(run.settings.targets == "cache" for run in runs):
        lines.append(
            "Times are those of training; dumping the teacher's targets, once for all experiments, is not counted."
        )
    return lines


def about_runs(what: str, runs: list[TrainingRun]) -> list[str]:
    """A line that names some runs, none where there are none."""
    return [f"{what}: {', '.join(str(run.folder) for run in runs)}."] if runs else []


def how_tested(found: list[Result]) -> list[str]:
    """What the numbers behind the verdict are."""
    lines = ["± of a mean is the standard deviation over seeds (n - 1); ± of a difference its standard error."]
    paired = [result.gain.paired for result in found if result.gain is not None and result.gain.comparisons]
    if paired:
        mixed = "by seed where the seeds are the same"
        how = "by seed" if all(paired) else mixed if any(paired) else "of means"
        lines.append(
            f"Tested with Student's t on differences {how}, corrected for {count_text(len(paired), 'comparison')} with "
            "the baseline (Bonferroni): without any effect, a difference counts as clear in at most 5 % of pages like "
            "this."
        )
    return lines


def how_alike(found: list[Result]) -> list[str]:
    """Which experiments get no verdict since they trained otherwise, and what could not be checked."""
    lines = [
        f"No verdict on {result.experiment.name}, which did not train as the baseline did. "
        f"{'. '.join(result.unlike_baseline)}. Train a baseline that does, and compare with that (--baseline)."
        for result in found
        if result.unlike_baseline
    ]
    unknown = unrecorded(result.experiment for result in found)
    if unknown and any(result.is_baseline for result in found):
        lines.append(
            f"Whether the baseline saw the same views could not be checked for {len(unknown)} runs of an older "
            f"version, which did not note those of its store, the first is {unknown[0].folder}."
        )
    return lines
