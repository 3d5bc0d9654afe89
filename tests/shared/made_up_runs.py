"""Run folders as training writes them, with numbers that are made up and known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.base.config import write_yaml
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.store import ViewSet
from common.training.recorder import METRICS_FILE, SETTINGS_FILE
from stage2_train_student.training.checksums import file_hash
from stage2_train_student.training.seen_data import write_seen
from tests.shared.reduced import DATASET, STREET_GRID, reduced_experiment

NAMES = load_label_map(DATASET).names[1:]
TERMS = {"baseline": (), "vpd": ("vpd_down1c",), "logit": ("logit",), "full": ("logit", "vpd_down1c", "lwd")}
MACHINE = {"git_commit": "0123456789abcdef", "git_modified": False, "devices": [], "threads": 2, "platform": "Linux"}


def write_run(
    folder: Path,
    *overrides: str,
    name: str = "baseline",
    seed: int = 0,
    miou: float = 0.5,
    steps: int = 60,
    step_seconds: float = 0.25,
    validations: int = 6,
    gigabytes: float | None = 2.0,
    targets_hash: str | None = None,
    seen: ViewSet | None = None,
    scans: Sequence[ScanId] = (ScanId("00", "000000"),),
    left_out: int = 0,
    labelled: list[ScanId] | None = None,
    environment: dict[str, Any] = MACHINE,
) -> Path:
    """Write a run of `steps` steps and as many epochs as validations.

    Every class has the IoU of `miou` plus an offset of its own; the mean of the offsets is 0, and all validations but
    the last are lower. With `seen`, the views of a made-up store, the run notes what it saw of `scans`, of which its
    dump has skipped some.
    """
    folder.mkdir(parents=True)
    settings = reduced_experiment(STREET_GRID, f"epochs={validations}", f"seed={seed}", *overrides, name=name)
    write_yaml(settings, folder / SETTINGS_FILE)
    if seen is not None:
        write_seen(folder, settings, seen, list(scans), targets_hash, left_out, labelled)
    (folder / "environment.json").write_text(json.dumps(environment))
    noise = np.random.default_rng([seed, len(name)])
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        epoch = (step - 1) * validations // steps
        fall = np.exp(-4 * step / steps)
        terms = {"cross_entropy": 0.3 + 2.4 * fall, "lovasz": 0.4 + 0.5 * fall}
        terms |= dict.fromkeys(TERMS.get(name, ()), 0.05 + 0.4 * fall)
        terms = {key: float(value * noise.lognormal(0, 0.12)) for key, value in terms.items()}
        terms |= {"loss": sum(terms.values()), "gradient_norm": 2 + 6 * fall, "learning_rate": 5e-4}
        times = {"seconds": step_seconds, "waited": 0.01}
        records.append({"kind": "train", "step": step, "epoch": epoch, **terms, **times})
        if step * validations // steps > epoch:
            part = 1 - 0.6 * np.exp(-3 * (epoch + 1) / validations) if epoch + 1 < validations else 1.0
            records.append(validation_record(step, epoch + 1, miou * part))
            if gigabytes is not None:
                cost = {"seconds": steps / validations * step_seconds + 1, "peak_memory_bytes": gigabytes * 1e9}
                records.append({"kind": "run", "step": step, "epoch": epoch + 1, "targets_hash": targets_hash, **cost})
    (folder / METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def validation_record(step: int, epoch: int, miou: float) -> dict[str, Any]:
    """What a validation writes."""
    return {"kind": "validation", "step": step, "epoch": epoch, "miou": miou, "iou": class_ious(miou)}


def class_ious(miou: float) -> dict[str, float]:
    """IoU of each class around their mean."""
    offsets = np.linspace(-0.9, 0.9, len(NAMES)) * min(miou, 1 - miou)
    return dict(zip(NAMES, (miou + offsets).tolist(), strict=True))


def write_evaluation(folder: Path, miou: float, agreement: float | None = None, **changes: Any) -> None:
    """Write a student and the evaluation of it."""
    weights = folder / "student_best.pt"
    if not weights.exists():
        weights.write_bytes(folder.name.encode())
    starts = (0, 10, 20, 30, 40, 50)
    numbers: dict[str, Any] = {
        "weights": weights.name,
        "weights_sha256": file_hash(weights),
        "splits": ["val"],
        "scans": 4071,
        "scans_sha256": "ab" * 32,
        "views": 1,
        "seed": 0,
        "points": 480_000_000,
        "miou": miou,
        "iou": class_ious(miou),
        "ranges": [{"from": start, "miou": miou * (1.05 - 0.004 * start)} for start in starts],
    }
    if agreement is not None:
        numbers["agreement"] = {"share": agreement}
    (folder / "evaluation.json").write_text(json.dumps(numbers | changes))
