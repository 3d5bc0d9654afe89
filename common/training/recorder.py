"""What a run leaves beside its weights: settings, environment, and every loss term in two formats."""

import json
from pathlib import Path
from typing import Any

from common.base.checked_json import CHECKSUM, with_checksum, without_checksum
from common.base.config import Settings, write_yaml
from common.base.environment import environment
from common.base.errors import DataError
from common.base.files import flush_to_disk, naming, write_atomically, write_json

METRICS_FILE = "metrics.jsonl"
SETTINGS_FILE = "settings.yaml"
ENVIRONMENT_FILE = "environment.json"
BOARD_FOLDER = "tensorboard"


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
        # A sixth of what any command of stage two would import: only a training writes to TensorBoard.
        from torch.utils.tensorboard import SummaryWriter

        write_yaml(settings, folder / SETTINGS_FILE)
        write_json(folder / ENVIRONMENT_FILE, environment())
        self._path = folder / METRICS_FILE
        keep_up_to(self._path, first_step, first_epoch)
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=first_step + 1)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        self._lines.close()
        self._board.close()

    def record(self, kind: str, step: int, values: dict[str, float], **more: Any) -> None:
        """Write numbers of one `kind` (`train`, `validation`, `run`) at a step; `more` goes to the JSON line only."""
        with naming(self._path):
            self._lines.write(json.dumps(with_checksum({"kind": kind, "step": step, **more, **values})) + "\n")
            self._lines.flush()
        with naming(self._path.with_name(BOARD_FOLDER)):
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)


def keep_up_to(path: Path, step: int, epoch: int) -> None:
    """Drop records of steps after `step` or epochs after `epoch`, and a last line that was cut off.

    The file is replaced at once by what is kept, so that a crash loses no line.

    Raises:
        DataError: another line than the last is not a record, or steps up to `step` have none.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    lines = data.splitlines()
    kept = [
        (line, record)
        for line, record in zip(lines, records(path, lines), strict=False)
        if record["step"] <= step and record.get("epoch", 0) <= epoch
    ]
    check_no_gap(path, [record["step"] for _, record in kept if record["kind"] == "train"], step)
    content = b"".join(line + b"\n" for line, _ in kept)
    if content != data:
        write_atomically(path, content)


def check_no_gap(path: Path, recorded: list[int], step: int) -> None:
    """Raise a DataError unless every step up to `step` is recorded, from the first record on.

    The records of a run whose file was removed begin later than the run.
    """
    missing = sorted(set(range(min(recorded, default=1), step + 1)) - set(recorded))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {step} steps that the run has trained have no record here, the first is "
            f"step {missing[0]}. Restore the file; or remove it, to go on without the earlier records."
        )


def flush_metrics(folder: Path) -> None:
    """Put what was recorded onto the disk now, before a state that counts on it."""
    path = folder / METRICS_FILE
    if path.exists():
        flush_to_disk(path)


def read_metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of one kind, or of all, from a run's `metrics.jsonl`, in order.

    Half a line at the end, as of a run that is being written, is left out.

    Raises:
        DataError: the file cannot be read, or a line is not a record.
    """
    path = folder / METRICS_FILE
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return [record for record in records(path, lines) if kind in (None, record["kind"])]


def records(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    """The record of each line, of the last one only if it is whole; a DataError if one is none, or was changed."""
    found: list[dict[str, Any]] = []
    checked = False
    for number, line in enumerate(lines, 1):
        try:
            stored = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            stored = None
        record = record_of(stored, checked)
        if record is None:
            raise DataError(
                f"{path}: line {number} is not a record of a training run, or was changed. Restore the file, or "
                "remove that line."
            )
        checked |= CHECKSUM in stored
        found.append(record)
    return found


def record_of(stored: Any, checked: bool) -> dict[str, Any] | None:
    """The record in a line's JSON, None if it is none; `checked`: whether a line before it had a checksum."""
    # Lines from before there were checksums come first.
    if not isinstance(stored, dict) or (checked and CHECKSUM not in stored):
        return None
    try:
        record = without_checksum(stored)
    except ValueError:
        return None
    counted = isinstance(record.get("step"), int) and isinstance(record.get("epoch", 0), int)
    return record if counted and isinstance(record.get("kind"), str) else None
