"""Writing a student's graphs as ONNX files, by PyTorch's exporter."""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from common.base.errors import SettingsError
from common.scans.polar_grid import POINT_FEATURES
from stage2_train_student.shipping.graphs import GraphInputs, MapNetwork, PillarNetwork, WholeNetwork, fused
from stage2_train_student.students.polarnet import PolarNet

OPSET = 18
"""The first in which a scatter can take maxima."""

NEEDED = ("onnx", "onnxscript", "onnxruntime")


class GraphInput(NamedTuple):
    """An input of a graph: its name, an example, and names of its dynamic axes, the first ones."""

    name: str
    example: torch.Tensor
    axes: tuple[str, ...]


def check_installed() -> None:
    """Say at once what is not installed.

    Raises:
        SettingsError: ONNX cannot be written or run here.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)} not installed, which ONNX needs: pip install 'polar-distill[export]'"
        )


def write_graphs(student: PolarNet, grid_shape: tuple[int, int, int], folder: Path) -> None:
    """Write `student.onnx`, `pillars.onnx` and `map.onnx`, see `graphs`; batch norms are fused.

    Args:
        student: stays as it is.
        grid_shape: bins along rho, phi, z.
        folder: where.
    """
    network = fused(student).cpu().requires_grad_(False)
    axes = (("points",), ("points",), ("pillars",), ("voxels",), ("voxels",))
    whole = [GraphInput(*each) for each in zip(GraphInputs._fields, example_inputs(), axes, strict=True)]
    features = GraphInput("pillar_features", torch.rand(3, student.map_channels), ("pillars",))
    padded = GraphInput("padded_pillars", torch.rand(3, 2, POINT_FEATURES), ("pillars", "points_of_pillar"))
    write_graph(WholeNetwork(network, grid_shape), whole, "logits", folder / "student.onnx")
    write_graph(MapNetwork(network, grid_shape), [features, *whole[2:]], "logits", folder / "map.onnx")
    write_graph(PillarNetwork(network), [padded], "pillar_features", folder / "pillars.onnx")


def example_inputs() -> GraphInputs:
    """Five points in three pillars and four voxels: the graph is the same for every scan."""
    indices = ([0, 1, 1, 2, 2], [0, 1, 2], [0, 1, 1, 2], [0, 1, 0, 1])
    return GraphInputs(torch.rand(5, POINT_FEATURES), *map(torch.tensor, indices))


def write_graph(network: nn.Module, inputs: list[GraphInput], output: str, path: Path) -> None:
    """Write one network, in eval mode, as one file."""
    # It warns of what is not installed, and of its own workings.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    dimensions = {name: torch.export.Dim(name) for each in inputs for name in each.axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            tuple(each.example for each in inputs),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            external_data=False,
            input_names=[each.name for each in inputs],
            output_names=[output],
            dynamic_shapes=(tuple({axis: dimensions[name] for axis, name in enumerate(each.axes)} for each in inputs)),
        )
    assert program is not None
    program.save(str(path))
