"""What a run leaves beside its weights: settings, environment, and every loss term in two formats."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.config import Settings, write_yaml
from common.environment import environment

METRICS_FILE = "metrics.jsonl"
SETTINGS_FILE = "settings.yaml"


class Recorder:
    """Writes numbers to `metrics.jsonl` (one JSON object a line) and to TensorBoard. Use as a context manager.

    Args:
        folder: of the run.
        settings: of the run; written resolved, with the environment beside them.
        first_step: steps already recorded; lines of later steps, left by a run that died after its last save, go.
        first_epoch: epochs finished; lines of later epochs go as well, such as the validation after an epoch whose
            last step was saved and whose end was not.
    """

    def __init__(self, folder: Path, settings: Settings, first_step: int, first_epoch: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(settings, folder / SETTINGS_FILE)
        (folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
        path = folder / METRICS_FILE
        keep_up_to(path, first_step, first_epoch)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        self._lines.close()
        self._board.close()

    def record(self, kind: str, step: int, values: dict[str, float], **more: Any) -> None:
        """Write numbers of one `kind` (`train`, `validation`, `run`) at a step; `more` goes to the JSON line only."""
        self._lines.write(json.dumps({"kind": kind, "step": step, **more, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def keep_up_to(path: Path, step: int, epoch: int) -> None:
    """Drop lines of steps after `step` or epochs after `epoch`, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("step", 0) <= step and record.get("epoch", 0) <= epoch:
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def read_metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Records of one kind from a run's `metrics.jsonl`, in order."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
