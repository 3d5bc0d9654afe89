"""Eight-bit graphs (static, onnxruntime's own tools), calibrated on real scans."""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.scans.scan_batch import ScanBatch
from stage2_train_student.shipping.graphs import GraphInputs

MAP_OPERATIONS = ["Conv", "LeakyRelu", "Concat", "Resize", "MaxPool", "Slice"]
FLOAT_LAYERS = 2
"""First layers of the point network that stay as they are: eight bits would round coordinates to decimetres."""


def write_int8(folder: Path, batches: Iterable[ScanBatch]) -> None:
    """Write `pillars_int8.onnx` and `map_int8.onnx` beside the float graphs of an exported folder.

    The classifier and the first layers of the point network stay float32. Seven bits a weight, since processors
    without VNNI would saturate on eight.

    Args:
        folder: holds `parameters.json` and the float graphs.
        batches: of one scan each, to take ranges of values from.
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
