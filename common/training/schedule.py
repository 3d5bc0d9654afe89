"""How the learning rate changes over a run: a function of the step alone, so resuming needs no state for it."""

import math
from typing import Literal

from pydantic import Field, model_validator

from common.base.config import Settings


class ScheduleSettings(Settings):
    """How the learning rate changes over the run, see `schedule.learning_rate_factor`.

    Attributes:
        kind: `constant`; `cosine`, down to `final`; `one_cycle`, up over the warm-up and down to `final` again, both
            along a half cosine.
        warm_up: steps over which the learning rate rises; 0 for none.
        first: learning rate of the first step of a warm-up, as a factor on `optimiser.learning_rate`.
        final: learning rate at the end of the last epoch, likewise; a constant schedule has no use for it.
    """

    kind: Literal["constant", "cosine", "one_cycle"] = "constant"
    warm_up: int = Field(0, ge=0)
    first: float = Field(0.04, ge=0, le=1)
    final: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ScheduleSettings":
        if self.kind == "one_cycle" and not self.warm_up:
            raise ValueError("one_cycle rises before it falls; give warm_up, the number of steps that it rises")
        return self


def learning_rate_factor(step: int, steps: int, schedule: ScheduleSettings) -> float:
    """Factor on the learning rate at one step of the optimiser.

    The warm-up is a straight line from `first` to 1 (along half a cosine for `one_cycle`: Smith and Topin 2019, in the
    two-phase form). After it `constant` stays at 1; `cosine` (Loshchilov and Hutter 2017, equation 5, no restarts) and
    `one_cycle` fall to `final`, which they reach at the last of all `steps`, and stay there. The first `step` is 0.
    """
    if step < schedule.warm_up:
        risen = step / schedule.warm_up
        if schedule.kind == "one_cycle":
            risen = half_cosine(risen)
        return schedule.first + (1.0 - schedule.first) * risen
    if schedule.kind == "constant":
        return 1.0
    share = (step - schedule.warm_up) / max(steps - 1 - schedule.warm_up, 1)
    return 1.0 + (schedule.final - 1.0) * half_cosine(min(share, 1.0))


def half_cosine(share: float) -> float:
    """Smooth rise from 0 to 1 as `share` goes from 0 to 1: (1 - cos(pi share)) / 2."""
    return 0.5 * (1.0 - math.cos(math.pi * share))
