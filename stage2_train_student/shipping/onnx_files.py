"""Writing a student's graphs as ONNX files: by PyTorch's exporter, and in eight bits by onnxruntime's own tools."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from common.base.errors import SettingsError
from common.scans.polar_grid import POINT_FEATURES
from common.scans.scan_batch import ScanBatch
from stage2_train_student.shipping.graphs import GraphInputs, MapNetwork, PillarNetwork, WholeNetwork, fused
from stage2_train_student.students.polarnet import PolarNet

OPSET = 18
"""The first in which a scatter can take maxima."""

MAP_OPERATIONS = ["Conv", "LeakyRelu", "Concat", "Resize", "MaxPool", "Slice"]
FLOAT_LAYERS = 2
"""First layers of the point network that stay as they are: eight bits would round coordinates to decimetres."""

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
    """Write `student.onnx`, `pillars.onnx` and `map.onnx`, see `graphs`, with fused batch norms into a folder."""
    network = fused(student).cpu().requires_grad_(False)
    axes = (("points",), ("points",), ("pillars",), ("voxels",), ("voxels",))
    # Five points in three pillars and four voxels: the graph is the same for every scan.
    indices = ([0, 1, 1, 2, 2], [0, 1, 2], [0, 1, 1, 2], [0, 1, 0, 1])
    examples = (torch.rand(5, POINT_FEATURES), *map(torch.tensor, indices))
    whole = [GraphInput(*each) for each in zip(GraphInputs._fields, examples, axes, strict=True)]
    features = GraphInput("pillar_features", torch.rand(3, student.map_channels), ("pillars",))
    padded = GraphInput("padded_pillars", torch.rand(3, 2, POINT_FEATURES), ("pillars", "points_of_pillar"))
    write_graph(WholeNetwork(network, grid_shape), whole, "logits", folder / "student.onnx")
    write_graph(MapNetwork(network, grid_shape), [features, *whole[2:]], "logits", folder / "map.onnx")
    write_graph(PillarNetwork(network), [padded], "pillar_features", folder / "pillars.onnx")


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


def write_int8(folder: Path, batches: Iterable[ScanBatch]) -> None:
    """Write `pillars_int8.onnx` and `map_int8.onnx` beside the float graphs of an exported folder.

    Ranges of values are taken from batches of one scan each. The classifier and the first layers of the point network
    stay float32. Seven bits a weight, since processors without VNNI would saturate on eight.
    """
    import onnx

    from stage2_train_student.shipping.run_exported import ExportedStudent

    exported = ExportedStudent(folder)
    pillars, maps = Recorded(exported.pillars), Recorded(exported.map)
    exported.pillars, exported.map = pillars, maps
    for batch in batches:
        exported.logits(*(part.numpy() for part in GraphInputs.of(batch)))
    layers = [node.name for node in onnx.load(str(folder / "pillars.onnx")).graph.node if node.op_type == "Gemm"]
    quantise(folder / "map.onnx", maps.inputs, MAP_OPERATIONS, [])
    # Of the pillars of each size a sample shows the range.
    sample = [{name: values[:256] for name, values in inputs.items()} for inputs in pillars.inputs]
    quantise(folder / "pillars.onnx", sample, ["Gemm"], [*layers[:FLOAT_LAYERS], layers[-1]])


class Recorded:
    """A session of onnxruntime that keeps the inputs that it is run with."""

    def __init__(self, session: Any) -> None:
        self.session, self.inputs = session, list[dict[str, np.ndarray]]()

    def get_inputs(self) -> Any:
        """As the session's own."""
        return self.session.get_inputs()

    def run(self, outputs: Any, inputs: dict[str, np.ndarray]) -> Any:
        """As the session's own."""
        self.inputs.append(inputs)
        return self.session.run(outputs, inputs)


def quantise(path: Path, inputs: list[dict[str, np.ndarray]], operations: list[str], excluded: list[str]) -> None:
    """Write a graph with some operations in eight bits beside it, as `..._int8.onnx`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, np.ndarray]] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    prepared, level = path.with_name(f"{path.stem}_prepared.onnx"), logging.getLogger().level
    try:
        # It advises to do what was just done.
        logging.getLogger().setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path.with_name(f"{path.stem}_int8.onnx")),
                Reader(),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=operations,
                nodes_to_exclude=excluded,
            )
    finally:
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)
