"""Several processes that train one model, as torchrun starts them: which one this is, and sums over all of them.

One process trains as it would alone: every reduction then returns what it was given.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from common.base.devices import CPU, select_device
from common.base.errors import SettingsError
from common.base.shards import Shard

TORCHRUN = "WORLD_SIZE"
"""The environment variable with which torchrun says how many processes there are."""


@dataclass(frozen=True)
class Processes:
    """This process among all that train together. Each must call the same methods in the same order.

    The differentiable methods (`gather`, `mean`, `rows`) are for losses that every process computes to the same value.
    A gradient reaches what this process gave; those of all processes add up to that of the whole batch.

    Attributes:
        rank: of this process, from 0.
        count: of all processes.
        device: that this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """This process's share of any work."""
        return Shard(self.rank, self.count)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes of tensors of one shape and dtype, exact for integers; carries no gradient."""
        if self.count == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes by rank, of one shape and dtype; differentiable in this process's own."""
        if self.count == 1:
            return [values]
        own = values.detach().to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(parts, own)
        parts = [part.to(values.device) for part in parts]
        parts[self.rank] = values
        return parts

    def any(self, flag: object) -> bool:
        """Whether the flag is true in any process."""
        return bool(flag) if self.count == 1 else bool(self.sum(torch.tensor(int(bool(flag)))))

    def mean(self, value: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
        """The mean over a whole batch, a scalar, differentiable in `value`; 0 where no process has an entry.

        Args:
            value: a scalar, the mean over this process's entries; may be NaN where there are none.
            weight: of all of this process's entries together, such as their number; no gradient flows to it.
        """
        if self.count == 1:
            return value
        own = torch.as_tensor(weight, dtype=torch.float64, device=value.device).detach()
        total = self.sum(own)
        share = torch.where(total > 0, own / total, 0.0).to(value.dtype)
        part = torch.where(share > 0, value, 0.0) * share
        # What is added is 0, and has the gradient of this process's part.
        return self.sum(part) + (part - part.detach())

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [N, ...] of all processes, by rank, as [sum of N, ...]; differentiable. N is each process's own."""
        if self.count == 1:
            return rows
        lengths = [int(length) for length in self.gather(torch.tensor(len(rows)))]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        return torch.cat([part[:length] for part, length in zip(self.gather(padded), lengths, strict=True)])


ALONE = Processes()


def draw_apart(seed: int, step: int, processes: Processes) -> None:
    """Let every process but the first draw random numbers of its own from here on."""
    if not processes.first:
        words = np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))


@contextmanager
def started_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, connected: by nccl with a GPU each, by gloo on CPUs. Without it, one.

    Raises:
        SettingsError: the device cannot be used, or is one GPU for several processes.
    """
    if int(os.environ.get(TORCHRUN, "1")) == 1:
        yield Processes(device=select_device(device))
        return
    if device.startswith("cuda:"):
        raise SettingsError(
            f"device '{device}' is one GPU, but torchrun gives each process its own; choose auto, cuda or cpu"
        )
    own = select_device(device)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), own)
    finally:
        # Whatever still holds the group would let go of it while Python ends, which may abort the process.
        gc.collect()
        distributed.destroy_process_group()
