"""Means over seeds, and how sure a difference of two means is: Student's t, corrected for the number of comparisons."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
"""Largest chance that a comparison without any effect finds a clear difference, all its experiments together."""


class Sample(NamedTuple):
    """Values of one quantity over the seeds of an experiment, and these seeds where they are known.

    A seed without a value is left out.
    """

    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Sample":
        """Leave out what is None."""
        return cls(tuple(float(value) for value in values if value is not None))

    @classmethod
    def by_seed(cls, values: Mapping[int, float | None]) -> "Sample":
        """The same of values by their seed, in the order of the seeds."""
        known = {seed: float(value) for seed, value in sorted(values.items()) if value is not None}
        return cls(tuple(known.values()), tuple(known))

    @property
    def mean(self) -> float | None:
        """Mean of the values; None without any."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def most(self) -> float | None:
        """The largest value; None without any."""
        return max(self.values, default=None)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, with n - 1 in the denominator; None for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


class Difference(NamedTuple):
    """Difference of two means, and how sure it is.

    Attributes:
        error: its standard error, with so many degrees of freedom; None where a mean is of fewer than two values.
        paired: whether the error is that of differences by seed.
        comparisons: differences to the same baseline among which this is one; 0 where it is not tested.
    """

    value: float
    error: float | None = None
    freedom: int = 0
    paired: bool = False
    comparisons: int = 0

    @property
    def p_value(self) -> float | None:
        """Chance of a difference as large as this in any of the comparisons if nothing had an effect; None untested.

        Two-sided, of one comparison times their number (Bonferroni), so that it agrees with `interval`.
        """
        if self.error is None or not self.comparisons:
            return None
        if self.error == 0:
            return float(self.value == 0)
        return min(1.0, self.comparisons * 2 * float(stats.t.sf(abs(self.value) / self.error, self.freedom)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Differences that fit the values; all intervals of the comparisons hold together in 95 % of cases."""
        if self.error is None or not self.comparisons:
            return None
        margin = self.error * float(stats.t.isf(LEVEL / (2 * self.comparisons), self.freedom))
        return self.value - margin, self.value + margin

    @property
    def clear(self) -> bool:
        """Whether chance alone makes so large a difference in fewer than 5 % of cases."""
        return self.p_value is not None and self.p_value < LEVEL


def points_text(interval: tuple[float, float]) -> str:
    """An interval of shares in points of 100."""
    return "{:+.1f} to {:+.1f}".format(*(100 * end for end in interval))


def p_value_text(value: float) -> str:
    """A p-value in two digits."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def difference(sample: Sample, baseline: Sample) -> Difference | None:
    """Difference of the means; None where one has no value.

    Runs of one seed share their first weights and the order of their scans, so where both samples have the same seeds
    the error is that of the differences by seed. Elsewhere it is Welch's, which assumes no equal spreads, with as many
    degrees of freedom as the smaller sample has: his own formula finds too many in samples of two or three.
    """
    if sample.mean is None or baseline.mean is None:
        return None
    value, freedom = sample.mean - baseline.mean, min(len(sample.values), len(baseline.values)) - 1
    if not freedom:
        return Difference(value)
    if sample.seeds and sample.seeds == baseline.seeds:
        return Difference(value, standard_error(np.subtract(sample.values, baseline.values)), freedom, paired=True)
    return Difference(value, math.hypot(standard_error(sample.values), standard_error(baseline.values)), freedom)


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Of their mean: s / sqrt(n)."""
    return float(stats.sem(values))
