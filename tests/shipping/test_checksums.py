"""Hashes of an exported folder: what has changed or is missing is refused, and sha256sum agrees."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common.base.errors import CheckpointError
from stage2_train_student.__main__ import main
from stage2_train_student.predictor import Predictor
from stage2_train_student.training.checksums import SUMS_FILE
from tests.shared.reduced import command, succeed


@pytest.fixture
def exported(small_run, tmp_path) -> Path:
    succeed(command(main, "export", small_run, "--to", tmp_path / "out", "--no-onnx"))
    return tmp_path / "out"


def test_sha256sum_agrees_and_the_card_may_be_edited(exported):
    (exported / "README.md").write_text("ours")
    done = subprocess.run(
        ["sha256sum", "--check", SUMS_FILE], cwd=exported, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len([*exported.iterdir()]) - 2
    assert len(Predictor.load(exported, "cpu").names) == 20


def edited(pattern: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        [path] = folder.glob(pattern)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited("settings.yaml", "volume: polarnet", "volume: cylinder3d"), "settings.yaml: is not as export wrote it"),
        (edited("dataset_*.yaml", "name: truck", "name: lorry"), "yaml: is not as export wrote it"),
        (lambda folder: (folder / "student.safetensors").unlink(), "student.safetensors: is missing"),
        (
            lambda folder: (folder / SUMS_FILE).write_bytes(b"\xff\xfe"),
            "is missing. Write the folder again with export",
        ),
    ],
)
def test_a_changed_folder_is_no_student(exported, change, message):
    change(exported)
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(exported, "cpu")
