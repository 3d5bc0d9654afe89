"""The answer in short: whether the best experiment beats the baseline, and how sure that is."""

import math
from typing import Literal, NamedTuple

from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Difference


class Verdict(NamedTuple):
    """The answer in short.

    Attributes:
        sentence: whether distillation helped, and how sure that is.
        best: the experiment of the largest gain.
        tone: `better`, `worse` or `unclear`.
    """

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
    name, points = best.experiment.name, f"{abs(100 * gain.value):.1f} points of mIoU"
    who = f"{name}, the best of {len(fair)}," if len(fair) > 1 else name
    way = "above" if gain.value >= 0 else "below"
    if not fair:
        why = f"did not train as the baseline did ({best.unlike_baseline[0]}), so the difference may be due to that"
        return Verdict(f"No verdict: {name} is {points} {way} the baseline, but {why}.", best, "unclear")
    if gain.error is None:
        chance = "but without several seeds on both sides that cannot be told from chance"
        return Verdict(f"Not known: {who} is {points} {way} the baseline, {chance}.", best, "unclear")
    if not gain.clear:
        chance = f"which may be chance: {how_sure(gain)}"
        return Verdict(f"No clear difference: {who} is {points} {way} the baseline, {chance}.", best, "unclear")
    if gain.value > 0:
        cost = at_what_cost(best, found)
        return Verdict(f"Yes: {who} is {points} above the baseline{cost}: {how_sure(gain)}.", best, "better")
    return Verdict(f"No: {who} is {points} below the baseline: {how_sure(gain)}.", best, "worse")


def how_sure(gain: Difference) -> str:
    """The interval and the p-value of a tested difference, in words."""
    assert gain.interval is not None
    assert gain.p_value is not None
    low, high = gain.interval
    corrected = f", corrected for {gain.comparisons} comparisons" if gain.comparisons > 1 else ""
    chance = "< 0.001" if gain.p_value < 0.001 else f"= {gain.p_value:.2g}"
    return f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}, p {chance}{corrected}"


def at_what_cost(result: Result, found: list[Result]) -> str:
    """The time of a step as a multiple of the baseline's, in words; empty where it is not known."""
    baseline = next((other.seconds_per_step.mean for other in found if other.is_baseline), None)
    if not baseline or not result.seconds_per_step.mean:
        return ""
    return f", at {result.seconds_per_step.mean / baseline:.2f} times the time of a step"
