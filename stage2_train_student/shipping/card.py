"""The model card of an exported student, Markdown."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.base.config import Settings, load_json
from common.base.errors import SettingsError
from common.base.text import count_text, markdown_table, size_text
from common.scans.label_map import LabelMap
from stage2_train_student.evaluation.evaluate import table_rows
from stage2_train_student.evaluation.evaluation_file import TRAINED_ON, read_evaluation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.shipping.engines import Comparison
from stage2_train_student.students.student import Student
from stage2_train_student.training.runs import read_finished

CARD_FILE = "README.md"
LATENCY_FILE = "latency.json"
"""What the command `latency` keeps in a run's folder: the tables that it printed."""

GRAPHS = """
## Graphs

| file | takes | gives |
| --- | --- | --- |
| `student.onnx` | `point_features` [points, 9], `point_pillar` [points], `pillar_cell` [pillars], `voxel_pillar` and \
`voxel_height` [voxels] | `logits` [voxels, classes] |
| `pillars.onnx` | `padded_pillars` [pillars, points of a pillar, 9] | `pillar_features` [pillars, channels] |
| `map.onnx` | `pillar_features`, `pillar_cell`, `voxel_pillar`, `voxel_height` | `logits` [voxels, classes] |

All numbers of points, pillars and voxels are dynamic. `student.onnx` pools points by a scatter with maxima (opset 18).
The other two together are the same student for engines without it: a pillar is padded by repeating its points, which
changes nothing; cut to a fixed number of points, it loses those beyond. `run_exported.py` runs them with NumPy and
onnxruntime, `parameters.json` has all that it needs to know.
"""
"""The card's last part, where there are graphs."""


class LatencyNotes(Settings):
    """What that file holds: how many scans were measured on which machine, tables (the head first), and verdicts."""

    machine: str
    scans: int
    tables: list[Annotated[list[list[str]], Field(min_length=1)]]
    verdicts: list[str]


def model_card(
    run: Path,
    settings: ExperimentSettings,
    label_map: LabelMap,
    student: Student,
    licence: str,
    comparison: Comparison | None,
) -> str:
    """What is known of a run's student, and what is not."""
    weights = sum(value.numel() for value in student.parameters())
    finished = read_finished(run)
    terms = ", ".join(f"{name} {weight:g}" for name, weight in settings.distillation.weights.items()) or "none"
    one_of = "" if settings.label_every == 1 else f", of one of every {settings.label_every} scans of a sequence"
    targets = f" (targets {finished.targets_hash[:12]})" if finished and finished.targets_hash else ""
    teacher = "none" if settings.targets == "none" else f"{settings.teacher}{targets}"
    trained = f"{finished.step:,} steps, {count_text(finished.epoch, 'epoch')}" if finished else "not noted as finished"
    facts = [
        ["", ""],
        ["classes of", f"{label_map.name}: {', '.join(label_map.names[1:])}"],
        ["trained on", f"{', '.join(settings.train)}; {trained}, seed {settings.seed}"],
        ["labels used", f"{', '.join(settings.labels or ['all'])}{one_of}"],
        ["teacher", teacher],
        ["distillation terms", terms],
        ["network", f"{settings.student.network}, width {settings.student.width}; {weights:,} weights, "
         f"{size_text(4 * weights)} in float32"],
        ["grid", f"{settings.grid.volume}, {'x'.join(map(str, settings.grid.shape))} bins along rho, phi, z"],
        ["licence", licence],
    ]  # fmt: skip
    parts = [f"# {run.resolve().name}: LiDAR segmentation, points to classes", "\n".join(markdown_table(facts))]
    parts += ["## IoU by class and distance", *evaluation_part(run)]
    parts += ["## Latency", *latency_part(run)]
    if comparison is not None:
        scans = count_text(comparison.scans, "scan")
        said = f"On {scans}, {comparison.points:,} points; changed: another class than eager PyTorch."
        parts += ["## Eight bits", said, "\n".join(markdown_table(comparison.engine_rows()))]
    parts += ["## Not tested", not_tested(label_map)]
    return "\n\n".join(parts) + "\n"


def evaluation_part(run: Path) -> list[str]:
    """IoU in %, from the run's evaluation."""
    numbers = read_evaluation(run)
    if numbers is None:
        return [f"Not evaluated: `polar-distill evaluate --run {run.name} --data DATA`, then export again."]
    said = f"IoU in % on {', '.join(numbers['splits'])}, {count_text(numbers['scans'], 'scan')}, "
    said += f"{count_text(numbers['views'], 'view')} of each."
    parts = [said]
    if trained := numbers.get("trained_on"):
        parts.append(f"**The student was trained on {', '.join(trained)}: {TRAINED_ON}.**")
    if chosen := numbers.get("chosen_on"):
        parts.append(f"The student was chosen by its mIoU on {', '.join(chosen)}: a little optimistic.")
    return [*parts, "\n".join(markdown_table(table_rows(numbers)))]


def latency_part(run: Path) -> list[str]:
    """The tables of the command `latency`, if it has measured.

    Raises:
        SettingsError: its file is damaged.
    """
    path = run / LATENCY_FILE
    if not path.is_file():
        return [f"Not measured: `polar-distill latency {run.name} --data DATA`, then export again."]
    try:
        found = load_json(LatencyNotes, path)
    except SettingsError as error:
        raise SettingsError(f"{error.message}\nRemove it, or run latency again.") from error
    tables = ["\n".join(markdown_table(rows)) for rows in found.tables]
    return [f"{found.machine}, {count_text(found.scans, 'scan')}.", *tables, *found.verdicts]


def not_tested(label_map: LabelMap) -> str:
    """What nobody should take for granted."""
    return (
        f"Other sensors, mounting heights, weather and countries than those of {label_map.name}; scans that are not "
        "corrected for the sensor's own motion; reflectances of another scale. Points outside the grid count as ones "
        "on its border. Nothing here was tested for use where people could be harmed."
    )
