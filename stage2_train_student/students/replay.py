"""Networks of fixed-size maps replayed from CUDA graphs: a step launches them at once instead of kernel by kernel."""

import warnings
from typing import Any

import torch
from torch import nn


class Replay:
    """Replays a network in training where its input has the size that was captured, and calls it elsewhere.

    A replay overwrites the outputs and gradients of the one before, so it serves steps of one batch.
    """

    def __init__(self) -> None:
        self.by_size: dict[torch.Size, nn.Module] = {}

    def capture(self, network: nn.Module, maps: torch.Tensor) -> None:
        """Capture the forward and backward pass; the network's buffers and all random numbers stay as they are.

        Args:
            network: in training mode on a GPU, without a decision that depends on values.
            maps: an input; it requires a gradient where real ones do.
        """
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        random_state = torch.cuda.get_rng_state(maps.device)
        # PyTorch warns that gradients are added up on the stream of the capture; that is waited for.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        # A graph takes the place of the outer module's forward pass; the network itself stays what it is.
        outer = nn.Sequential(network)
        torch.cuda.make_graphed_callables(outer, (maps,), allow_unused_input=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.cuda.set_rng_state(random_state, maps.device)
        self.by_size[maps.shape] = outer

    def __call__(self, network: nn.Module, maps: torch.Tensor) -> Any:
        """What the network returns for some maps."""
        in_training = network.training and torch.is_grad_enabled()
        return self.by_size.get(maps.shape, network)(maps) if in_training else network(maps)
