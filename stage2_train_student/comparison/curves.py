"""Curves of what was recorded while training: mean and range over the seeds of an experiment."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from stage2_train_student.comparison.experiments import Experiment

NO_TERMS = {"kind", "step", "epoch", "seconds", "waited"}
"""What a step's record holds besides numbers to draw."""

FIRST_TERMS = ("loss", "cross_entropy", "lovasz")
LAST_TERMS = ("gradient_norm", "learning_rate")
MOST_POINTS = 100


class Curve(NamedTuple):
    """A quantity over the rising steps of an experiment: mean, lowest and highest of the seeds, each float [N]."""

    name: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def recorded_terms(experiments: Iterable[Experiment]) -> list[str]:
    """Every number that some run recorded at its steps, in the order in which they are shown."""
    records = (record for experiment in experiments for run in experiment.runs for record in run.steps[:1])
    names = {name for record in records for name in record} - NO_TERMS
    middle = sorted(names - {*FIRST_TERMS, *LAST_TERMS})
    return [name for name in (*FIRST_TERMS, *middle, *LAST_TERMS) if name in names]


def term_curve(experiment: Experiment, term: str, width: int) -> Curve | None:
    """One term over the steps, each point the mean of `width` steps; None where the experiment has no such term."""
    series = [pairs for run in experiment.runs if len(pairs := values_of(run.steps, term))]
    return mean_curve(experiment.name, [block_means(pairs, width) for pairs in series])


def validation_curve(experiment: Experiment) -> Curve | None:
    """mIoU of the validations in percent, over the steps; None without a validation."""
    series = [pairs * (1, 100) for run in experiment.runs if len(pairs := values_of(run.validations, "miou"))]
    return mean_curve(experiment.name, series)


def values_of(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """Step and value of the records that hold a finite value, float [N, 2]."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    found = np.array(pairs, np.float64).reshape(-1, 2)
    return found[np.isfinite(found[:, 1])]


def block_width(steps: int) -> int:
    """Steps that are averaged into one point of a curve."""
    return max(1, -(-steps // MOST_POINTS))


def block_means(pairs: np.ndarray, width: int) -> np.ndarray:
    """Means over blocks of `width` consecutive steps, float [M, 2]: middle of the block, and mean of its values."""
    block = ((pairs[:, 0] - 1) // width).astype(np.int64)
    present, place = np.unique(block, return_inverse=True)
    sums = np.bincount(place, weights=pairs[:, 1])
    return np.stack((present * width + (width + 1) / 2, sums / np.bincount(place)), axis=1)


def mean_curve(name: str, series: list[np.ndarray]) -> Curve | None:
    """Mean, lowest and highest over seeds at the steps that all of them have; None where there are none."""
    common = set.intersection(*(set(pairs[:, 0]) for pairs in series)) if series else set()
    if not common:
        return None
    values = np.stack([pairs[np.isin(pairs[:, 0], list(common)), 1] for pairs in series])
    return Curve(name, np.array(sorted(common)), values.mean(axis=0), values.min(axis=0), values.max(axis=0))
