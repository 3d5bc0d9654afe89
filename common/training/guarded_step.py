"""A step of the optimiser that nothing waits for: whether it may be taken is decided on the device."""

from itertools import accumulate

import torch

from common.training.state import TrainingState


def step_if_finite(state: TrainingState, rate: float, values: torch.Tensor) -> None:
    """Take one step of Adam unless a number is NaN or infinite; with a loss scaler, unless a gradient is.

    Whoever reads the numbers afterwards finds out whether it was taken: the weights are those of before if not, and
    stay so, whatever steps are launched meanwhile.

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
    halted = 1.0 - torch.isfinite(values).all().to(torch.float32)
    state.halted = halted if state.halted is None else torch.maximum(state.halted, halted)
    optimiser.found_inf = state.halted  # type: ignore[attr-defined]
    optimiser.step()
    del optimiser.found_inf  # type: ignore[attr-defined]


class DeviceRows:
    """Rows of numbers that a device may still be computing; its other work is not waited for.

    Args:
        rows: float [N], each of its own length, of one dtype.
    """

    def __init__(self, rows: list[torch.Tensor]) -> None:
        self._ends = list(accumulate(len(row) for row in rows))
        self._numbers, self._copied = torch.cat(rows), None
        if self._numbers.is_cuda:
            pinned = torch.empty(self._numbers.shape, dtype=self._numbers.dtype, pin_memory=True)
            self._numbers = pinned.copy_(self._numbers, non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event()

    def read(self) -> list[list[float]]:
        """The numbers of each row: the one place in a step where a device is waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return [numbers[start:end] for start, end in zip([0, *self._ends], self._ends, strict=False)]
