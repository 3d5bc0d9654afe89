"""Exponential moving average of the student's weights (Polyak averaging)."""

import copy

import torch

from stage2_train_student.students.student import Student


def averaged_copy(student: Student) -> Student:
    """A student that starts as a copy and is changed by `update_average` only."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def decay_at(step: int, decay: float) -> float:
    """Decay after `step` steps: smaller at first, so that the random start is soon forgotten.

    min(decay, (1 + step) / (10 + step)), as in TensorFlow's `ExponentialMovingAverage`.
    """
    return min(decay, (1.0 + step) / (10.0 + step))


@torch.no_grad()
def update_average(average: Student, student: Student, decay: float) -> None:
    """average <- decay * average + (1 - decay) * student, in place.

    Running statistics of batch norm are averaged too, since they belong to the weights; counters are copied.
    """
    pairs = list(zip(average.state_dict().values(), student.state_dict().values(), strict=True))
    numbers = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in numbers], [new for _, new in numbers], 1.0 - decay)
    for kept, counter in pairs:
        if not kept.is_floating_point():
            kept.copy_(counter)
