"""python run_exported.py scan.bin labels.npy: of each point float32 x, y, z, remission in, its class out, uint8."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SIZES = np.unique([round(2 ** (half / 2)) for half in range(40)])  # of pillars that are padded together


class ExportedStudent:
    """A folder that `polar-distill export` wrote; `form` is "" or "_int8"."""

    def __init__(self, folder: Path, form: str = "", threads: int = 0) -> None:
        known = json.loads((folder / "parameters.json").read_text())
        try:
            self.grid = [np.array(known["grid"][key]) for key in ("minimum", "maximum", "shape")]
            self.channels = known["pillar_channels"]
        except KeyError as error:
            raise ValueError(f"parameters.json lacks {error}: write the folder again with export") from error
        options, names = onnxruntime.SessionOptions(), (f"pillars{form}.onnx", f"map{form}.onnx")
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning slows down what comes after
        self.pillars, self.map = (onnxruntime.InferenceSession(folder / name, options) for name in names)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """float32 [N, 4] to uint8 [N]; class 0, unlabelled, is never predicted."""
        if not (np.abs(points) < [1e4, 1e4, 1e4, 1e6]).all():
            raise ValueError("points that hold NaN, infinity or what no sensor measures: remove them first")
        (x, y, z, remission), (low, high, shape) = points.T, self.grid
        width = (high - low) / (shape - 1)
        polar = np.stack((np.sqrt(x * x + y * y), np.arctan2(y, x), z), axis=1)
        bins = ((np.clip(polar, low, high, dtype=np.float64) - low) / width).astype(np.int64)
        features = np.column_stack((polar - ((bins + 0.5) * width + low), polar, x, y, remission)).astype(np.float32)
        voxels, point_voxel = np.unique(np.ravel_multi_index(tuple(bins.T), tuple(shape)), return_inverse=True)
        cells, voxel_pillar = np.unique(voxels // shape[2], return_inverse=True)
        logits = self.logits(features, voxel_pillar[point_voxel], cells, voxel_pillar, voxels % shape[2])
        return (logits[:, 1:].argmax(axis=1) + 1).astype(np.uint8)[point_voxel]

    def logits(self, features: Any, point_pillar: Any, cells: Any, voxel_pillar: Any, heights: Any) -> Any:
        """Of each occupied voxel, float32 [V, classes]. Pillars of about equally many points go together."""
        order, counts = np.argsort(point_pillar, kind="stable"), np.bincount(point_pillar)
        first, size = np.cumsum(counts) - counts, np.searchsorted(SIZES, counts)
        pillar_features = np.empty((len(cells), self.channels), np.float32)
        for chosen in np.unique(size):
            rows = np.flatnonzero(size == chosen)
            slots = np.minimum(np.arange(SIZES[chosen]), counts[rows, None] - 1) + first[rows, None]
            [pillar_features[rows]] = self.pillars.run(None, {"padded_pillars": features[order[slots]]})
        of_map = (pillar_features, cells, voxel_pillar, heights)
        return self.map.run(None, dict(zip([one.name for one in self.map.get_inputs()], of_map, strict=True)))[0]


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].endswith(".bin"):
        sys.exit(__doc__)
    student, data = ExportedStudent(Path(__file__).parent), Path(sys.argv[1]).read_bytes()
    np.save(sys.argv[2], student(np.frombuffer(data, np.float32).reshape(-1, 4)))
