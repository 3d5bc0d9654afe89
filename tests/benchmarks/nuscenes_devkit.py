"""nuScenes-lidarseg as this project reads, scores and writes it, against nuscenes-devkit in an environment of its own.

    python3 -m venv /somewhere/devkit && /somewhere/devkit/bin/pip install nuscenes-devkit
    python -m tests.benchmarks.nuscenes_devkit --python /somewhere/devkit/bin/python [--data nuscenes]

The devkit wants NumPy 1, so it cannot be installed beside this project. Without --data a dataset is made up. Compared:
the scans of each split, points and labels of every scan, the benchmark's scores of made-up predictions, and whether the
devkit takes the submission. Ends with status 1 where anything differs.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.base.command_options import path_type
from common.scans.dataset import Dataset
from common.scans.formats.nuscenes import NuScenes
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.training.metrics import ConfusionMatrix
from common.training.predictor import ScanPrediction
from stage2_train_student.evaluation.submission import write_predictions
from tests.shared.nuscenes_writer import LABEL_MAP, write_nuscenes

DEVKIT = """
import hashlib, json, sys
import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.lidarseg.evaluate import LidarSegEval
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from nuscenes.eval.lidarseg.validate_submission import validate_submission
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.data_io import load_bin_file
from nuscenes.utils.splits import create_splits_scenes

data, version, submission = sys.argv[1:4]
nusc = NuScenes(version, data, verbose=False)
mapper, splits, result = LidarsegClassMapper(nusc), create_splits_scenes(), {"splits": {}, "scans": {}, "scores": {}}
scene_of = {scene["token"]: scene["name"] for scene in nusc.scene}
for sample in nusc.sample:
    token = sample["data"]["LIDAR_TOP"]
    points = np.ascontiguousarray(LidarPointCloud.from_file(nusc.get_sample_data_path(token)).points.T)
    labels = mapper.convert_label(load_bin_file(f"{data}/{nusc.get('lidarseg', token)['filename']}"))
    hashes = [hashlib.sha256(part.tobytes()).hexdigest() for part in (points, labels.astype(np.uint8))]
    result["scans"][token] = [scene_of[sample["scene_token"]], *hashes]
for split in ("train", "val", "test", "mini_train", "mini_val"):
    result["splits"][split] = sorted(splits[split])
for split in sys.argv[4:]:
    validate_submission(nusc, submission, split)
    scores = LidarSegEval(nusc, submission, split).evaluate()
    result["scores"][split] = [scores["miou"], *(float(x) for x in list(scores["iou_per_class"].values())[1:])]
print(json.dumps(result))
"""


def predictions_of(dataset: Dataset, scans: list[ScanId], seed: int = 0) -> list[ScanPrediction]:
    """The truth, of which a third was replaced by one of nine classes."""
    generator, found = np.random.default_rng(seed), []
    for scan in scans:
        source = dataset.read(scan)
        assert source.labels is not None
        guess = generator.integers(1, 10, len(source.labels), np.uint8)
        known = (source.labels > 0) & (generator.random(len(guess)) < 2 / 3)
        found.append(ScanPrediction(scan, np.where(known, source.labels, guess), source))
    return found


def ours(dataset: Dataset, splits: list[str], submission: Path) -> dict[str, Any]:
    """What this project finds, in the words of the devkit's side; writes the submission of each split."""
    assert isinstance(dataset.files, NuScenes)
    result: dict[str, Any] = {"splits": {}, "scans": {}, "scores": {}}
    for scan in dataset.files.scans(dataset.files.sequences()):
        name, _ = dataset.files.prediction(scan, np.empty(0), dataset.label_map, "val")
        source = dataset.read(scan)
        assert source.labels is not None
        hashes = [hashlib.sha256(part.tobytes()).hexdigest() for part in (source.points, source.labels)]
        result["scans"][Path(name).name.removesuffix("_lidarseg.bin")] = [scan.sequence, *hashes]
    result["splits"] = {name: sorted(scenes) for name, scenes in dataset.label_map.splits.items()}
    for split in splits:
        found = predictions_of(dataset, dataset.select([split]).scans)
        write_predictions(found, dataset, submission, None, [split])
        matrix = ConfusionMatrix.empty(dataset.classes)
        for one in found:
            assert one.source.labels is not None
            matrix = matrix + ConfusionMatrix.of(one.source.labels, one.labels, dataset.classes)
        mean = matrix.mean_iou_of_benchmark(dataset.label_map.absent_classes)
        result["scores"][split] = [mean, *matrix.iou()[1:].tolist()]
    return result


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Lines about what is not the same; the devkit sums in float32."""
    lines = [f"{part}: not the same" for part in ("splits", "scans") if one[part] != other[part]]
    for split, scores in other["scores"].items():
        if not np.allclose(one["scores"][split], scores, rtol=1e-6, equal_nan=True):
            lines.append(f"scores of {split}: {one['scores'][split]} and {scores}")
    return lines


@click.command()
@click.option("--python", "interpreter", type=path_type, required=True, help="Of an environment with nuscenes-devkit.")
@click.option("--data", type=path_type, help="A nuScenes folder, instead of a made-up one.")
@click.option("--version", default="v1.0-mini", show_default=True)
def main(interpreter: Path, data: Path | None, version: str) -> None:
    """Compare, and print what was the same."""
    splits = ["mini_train", "mini_val"] if version.endswith("mini") else ["train", "val"]
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = Path(folder) / "nuscenes"
            scenes = load_label_map(LABEL_MAP).sequences(splits)
            write_nuscenes(data, version, {scene: 1 + number % 3 for number, scene in enumerate(scenes)})
        label_map = load_label_map(LABEL_MAP).model_copy(update={"options": {"version": version}})
        submission = Path(folder) / "submission"
        found = ours(Dataset.open(data, label_map), splits, submission)
        command = [str(interpreter), "-c", DEVKIT, str(data), version, str(submission), *splits]
        devkit = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
    lines = differences(found, devkit)
    click.echo(f"scans {len(devkit['scans'])}: scene, points and classes; splits {', '.join(devkit['splits'])}")
    for split, (mean, *_) in devkit["scores"].items():
        click.echo(f"{split}: submission valid; mIoU {mean:.9f}, here {found['scores'][split][0]:.9f}")
    click.echo("\n".join(lines) or "all the same")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
