"""The answer in short: whether the best experiment beats the baseline, and how sure that is."""

import math
from typing import Literal, NamedTuple

from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Difference, p_value_text, points_text


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
