"""A step of the optimiser that nothing waits for: whether it may be taken is decided on the device."""

import torch

from common.base.records import start_to_host
from common.training.state import TrainingState


def step_if_finite(state: TrainingState, rate: float, values: torch.Tensor) -> None:
    """Take one step of Adam unless a number is NaN or infinite; with a loss scaler, unless a gradient is.

    Whoever reads the numbers afterwards finds out whether it was taken: the weights are those of before if not, and
    stay so, whatever steps are launched meanwhile. The optimiser is fused, its gradients are unscaled, and `values` are
    on its device.
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
    """Rows of numbers, float [N] of one dtype, that a device may still be computing; only they are waited for."""

    def __init__(self, rows: list[torch.Tensor]) -> None:
        self._lengths = [len(row) for row in rows]
        self._wait = start_to_host([torch.cat(rows)])

    def read(self) -> list[list[float]]:
        """The numbers of each row: the one place in a step where a device is waited for."""
        [numbers] = self._wait()
        return [row.tolist() for row in numbers.split(self._lengths)]
