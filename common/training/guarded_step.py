"""A step of the optimiser that nothing waits for: whether it may be taken is decided on the device."""

from itertools import accumulate

import torch

from common.training.state import TrainingState


def step_if_finite(state: TrainingState, rate: float, values: torch.Tensor) -> None:
    """Take one step of Adam unless a number is NaN or infinite; with a loss scaler, unless a gradient is.

    Whoever reads the numbers afterwards finds out whether it was taken: the weights are those of before if not.

    Args:
        state: its optimiser is fused, and its gradients are there and unscaled.
        rate: the learning rate.
        values: float, on the device of the weights.
    """
    optimiser = state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = rate
    if state.scaler.is_enabled():
        state.scaler.step(optimiser)
        state.scaler.update()
        return
    # The interface by which PyTorch's own loss scaler tells a fused optimiser to do nothing.
    optimiser.found_inf = 1.0 - torch.isfinite(values).all().float()  # type: ignore[attr-defined]
    optimiser.step()
    del optimiser.found_inf  # type: ignore[attr-defined]


def read_rows(rows: list[torch.Tensor]) -> list[list[float]]:
    """Numbers of some rows on a device: the one place in a step where the device is waited for."""
    numbers: list[float] = torch.cat(rows).tolist()
    ends = accumulate([len(row) for row in rows])
    return [numbers[end - len(row) : end] for row, end in zip(rows, ends, strict=True)]
