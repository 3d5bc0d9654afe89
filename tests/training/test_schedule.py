"""The learning rate over a run."""

import pytest
import torch

from common.training.schedule import ScheduleSettings, learning_rate_factor


def factors(steps: int, **settings) -> list[float]:
    schedule = ScheduleSettings(**settings)
    return [learning_rate_factor(step, steps, schedule) for step in range(steps)]


def test_a_constant_schedule_is_constant():
    assert factors(5) == [1.0] * 5


def test_a_cosine_falls_to_its_end_symmetrically():
    values = factors(11, kind="cosine", final=0.2)
    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.6)
    assert values[10] == pytest.approx(0.2)
    assert values == sorted(values, reverse=True)
    torch_rates = cosine_of_torch(11, 0.2)
    assert values == pytest.approx(torch_rates)


def cosine_of_torch(steps: int, final: float) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - 1, eta_min=final)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return rates


def test_a_warm_up_is_a_straight_line_to_the_full_rate():
    assert factors(6, warm_up=4, first=0.2) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_one_cycle_is_that_of_pytorch():
    steps, rising = 12, 4
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1.0, total_steps=steps, pct_start=(rising + 1) / steps, div_factor=25.0, final_div_factor=4.0
    )
    rates = []
    for _ in range(steps):
        rates.append(reference.get_last_lr()[0])
        optimiser.step()
        if len(rates) < steps:
            reference.step()
    assert factors(steps, kind="one_cycle", warm_up=rising, first=0.04, final=0.01) == pytest.approx(rates)


def test_the_rate_stays_at_its_end_after_the_last_step():
    assert learning_rate_factor(50, 11, ScheduleSettings(kind="cosine", final=0.1)) == pytest.approx(0.1)
