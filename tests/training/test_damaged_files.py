"""Flipped bytes, wrong kinds of files and disks that give no more room: each is named, and nothing is lost."""

import hashlib
import json
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from common.base.checked_json import with_checksum
from common.base.content_hash import check_archive, sealed_safetensors
from common.base.errors import CheckpointError, DataError
from common.base.files import write_atomically
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.recorder import METRICS_FILE, keep_up_to, read_metrics
from common.training.resuming import checked_progress, load_strictly
from stage2_train_student.training.runs import FINISHED_FILE, read_finished

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 4096
"""Bytes of the largest file that `on_full_disk` can write."""


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"layer.weight": torch.randn(9, 11, generator=generator), "layer.steps": torch.tensor(7)}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def on_full_disk(program: str, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run a program that can write `LIMIT` bytes to a file and then gets an error, as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, preexec_fn=limit, capture_output=True, text=True, check=False)


# --- flipped bytes ---


def silent_flips(path: Path, data: bytes, weights: dict[str, torch.Tensor], step: int) -> list[int]:
    """Positions where a flipped bit leaves a file that loads with other content."""
    generator, found = np.random.default_rng(0), []
    for position in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        if not same(loaded, weights):
            found.append(position)
    return found


def test_no_flipped_byte_of_what_is_written_loads_as_something_else(tmp_path, weights):
    path = tmp_path / "last.pt"
    save_checkpoint(path, weights)
    assert silent_flips(path, path.read_bytes(), weights, 3) == []


def test_no_flipped_byte_of_a_published_archive_loads_as_something_else(tmp_path, weights):
    path = tmp_path / "published.pt"
    torch.save(weights, path)
    assert silent_flips(path, path.read_bytes(), weights, 3) == []


def test_no_flipped_byte_of_a_written_safetensors_file_loads_as_something_else(tmp_path, weights):
    path = tmp_path / "teacher.safetensors"
    assert silent_flips(path, sealed_safetensors(weights), weights, 1) == []


def test_many_changed_bytes_that_keep_the_checksums_are_noticed(tmp_path, weights):
    """Another archive with its own right checksums, under the hash of the first."""
    save_checkpoint(tmp_path / "one.pt", weights)
    torch.save({"layer.weight": weights["layer.weight"] + 1, "layer.steps": torch.tensor(7)}, tmp_path / "other.pt")
    one, other = (tmp_path / "one.pt").read_bytes(), (tmp_path / "other.pt").read_bytes()
    (tmp_path / "one.pt").write_bytes(other[:-2] + one[len(one) - 73 :])
    with pytest.raises(CheckpointError, match="the hash that was kept"):
        load_checkpoint(tmp_path / "one.pt")


def test_files_with_a_hash_are_read_by_other_programs(tmp_path, weights, capsys):
    save_checkpoint(tmp_path / "student.pt", weights)
    assert check_archive((tmp_path / "student.pt").read_bytes())
    assert same(torch.load(tmp_path / "student.pt", weights_only=True), weights)
    assert same(torch.load(tmp_path / "student.pt", weights_only=True, mmap=True), weights)
    assert same(load_safetensors(sealed_safetensors(weights)), weights)
    load_checkpoint(tmp_path / "student.pt")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_without_a_hash_loads_and_its_sha_256_is_said(tmp_path, weights, suffix, capsys):
    path = tmp_path / f"published{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    assert same(load_checkpoint(path), weights)
    said = capsys.readouterr().err
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in said
    assert str(path) in said


# --- other kinds of files ---


@pytest.mark.parametrize(
    ("content", "what", "next_step"),
    [
        (b"", "empty", "again"),
        (b"\n<!DOCTYPE html><html><head><title>Sign in", "a web page", "Download the checkpoint again"),
        (b"<html>404</html>", "a web page", "Download the checkpoint again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n", "git-lfs", "git lfs pull"),
        (b"epoch,loss\n1,0.5\n", "plain text", "Check the path"),
        (b"\x1f\x8b\x08\x00" + bytes(300), "gzip", "Unpack it"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "a tar archive", "Unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["teacher.pt", "teacher.safetensors"])
def test_what_is_no_checkpoint_is_said_without_advice_to_run_its_code(tmp_path, content, what, next_step, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / name)
    message = caught.value.message
    assert str(tmp_path / name) in message
    assert what in message
    assert next_step in message
    assert "weights_only" not in message


@pytest.mark.parametrize(("name", "right"), [("a.pt", "a.safetensors"), ("a.safetensors", "a.pt")])
def test_a_name_that_says_another_kind_is_refused_with_the_right_one(tmp_path, weights, name, right):
    (torch.save if name == "a.safetensors" else save_file)(weights, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"Rename it to {right}") as caught:
        load_checkpoint(tmp_path / name)
    assert "weights_only" not in caught.value.message


def test_a_program_in_place_of_weights_is_said(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="a TorchScript program") as caught:
        load_checkpoint(tmp_path / "model.pt")
    assert "weights_only" not in caught.value.message


def test_objects_among_the_weights_are_named_without_advice_to_run_their_code(tmp_path):
    torch.save({"best": np.float64(0.5), "layer": torch.nn.Linear(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"more than tensors and plain values \(\S+\)") as caught:
        load_checkpoint(tmp_path / "model.pt")
    assert "weights_only" not in caught.value.message


# --- training states that somebody changed, without a hash ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value * float("nan"), "NaN or infinity in weight"),
        (lambda value: value / 0.0, "NaN or infinity in weight"),
        (lambda value: value.to_sparse(), r"weight \(sparse_coo\)"),
        (lambda value: value.to("meta"), r"weight \(on meta, without values\)"),
        (lambda value: value.int(), "no floating-point numbers: weight"),
    ],
)
def test_weights_that_are_not_finite_numbers_are_not_resumed_from(change, words):
    module = torch.nn.Linear(2, 3)
    before = module.weight.clone()
    state = dict(module.state_dict())
    with pytest.raises(CheckpointError, match=words):
        load_strictly(Path("last.pt"), module, state | {"weight": change(state["weight"])}, "the student")
    assert torch.equal(module.weight, before)


COUNTERS = {"epoch": 3, "step_in_epoch": 0, "step": 12, "best_miou": 0.5}


@pytest.mark.parametrize(
    "stored",
    [
        {},
        COUNTERS | {"epoch": "one"},
        COUNTERS | {"step_in_epoch": float("nan")},
        COUNTERS | {"best_miou": float("nan")},
        COUNTERS | {"step": -2},
        COUNTERS | {"save": 3},
    ],
)
def test_counters_that_no_run_can_have_are_refused(stored):
    begun = {"epoch": 0, "step_in_epoch": 0, "step": 0, "best_miou": -1.0, "validation_due": False}
    assert checked_progress(COUNTERS, begun) == COUNTERS
    assert checked_progress(COUNTERS | {"validation_due": True, "best_miou": -1.0}, begun)["validation_due"] is True
    with pytest.raises(ValueError, match="progress: "):
        checked_progress(stored, begun)


# --- records ---


def lines_of(steps: range) -> bytes:
    return b"".join(json.dumps({"kind": "train", "step": step, "epoch": 0}).encode() + b"\n" for step in steps)


def test_records_are_all_there_when_the_disk_is_full_while_a_run_resumes(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(lines_of(range(1, 1001)))
    program = "import sys; from pathlib import Path; from common.training.recorder import keep_up_to"
    done = on_full_disk(f"{program}; keep_up_to(Path(sys.argv[1]), 900, 0)", path)
    assert done.returncode != 0
    assert path.read_bytes() == lines_of(range(1, 1001))
    assert [entry.name for entry in tmp_path.iterdir()] == [METRICS_FILE]
    keep_up_to(path, 900, 0)
    assert path.read_bytes() == lines_of(range(1, 901))


def test_settings_stay_when_the_disk_is_full(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("old: settings\n")
    program = (
        "import sys; from common.base.config import Settings, write_yaml\n"
        "class Many(Settings):\n    names: list[str]\n"
        "write_yaml(Many(names=['name'] * 4000), sys.argv[1])"
    )
    assert "settings.yaml" in on_full_disk(program, path).stderr.splitlines()[-1]
    assert path.read_text() == "old: settings\n"


def test_half_a_line_at_the_end_goes_and_a_damaged_one_in_between_is_named(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(lines_of(range(1, 4)) + b'{"kind": "train", "st')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    keep_up_to(path, 3, 9)
    assert path.read_bytes() == lines_of(range(1, 4))
    for damaged in (
        b'{"kind": "tr\x9bin"}\n',
        b"[1]\n",
        b"\n",
        b'{"kind": "train"}\n',
        b'{"kind": "a", "step": null}\n',
    ):
        content = lines_of(range(1, 3)) + damaged + lines_of(range(3, 4))
        path.write_bytes(content)
        for read in (lambda: keep_up_to(path, 2, 0), lambda: read_metrics(tmp_path)):
            with pytest.raises(DataError, match=r"metrics\.jsonl: line 3 is not a record"):
                read()
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "first"),
    [(b"", 1), (lines_of(range(1, 4)), 4), (lines_of(range(1, 3)) + lines_of(range(4, 7)), 3)],
)
def test_records_that_are_gone_are_noticed_when_a_run_resumes(tmp_path, content, first):
    path = tmp_path / METRICS_FILE
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"metrics\.jsonl: .* of the 6 steps .* the first is step {first}\."):
        keep_up_to(path, 6, 0)
    assert path.read_bytes() == content
    path.unlink()
    keep_up_to(path, 6, 0)
    path.write_bytes(lines_of(range(7, 9)))
    keep_up_to(path, 8, 0)
    assert path.read_bytes() == lines_of(range(7, 9))


def test_no_changed_byte_of_a_line_is_read_as_another_number(tmp_path):
    path = tmp_path / METRICS_FILE
    record = {"kind": "validation", "step": 12, "miou": 0.625}
    line = json.dumps(with_checksum(record)).encode() + b"\n"
    for position in range(len(line) - 1):
        for other in (line[position] ^ 1, line[position] ^ 2):
            path.write_bytes(line + line[:position] + bytes([other]) + line[position + 1 :])
            with suppress(DataError):
                assert read_metrics(tmp_path) in ([record], [record, record])
    path.write_bytes(line.replace(b"0.625", b"0.725"))
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 1 .* was changed"):
        read_metrics(tmp_path)


def test_lines_from_before_there_were_checksums_are_read(tmp_path):
    path = tmp_path / METRICS_FILE
    new = json.dumps(with_checksum({"kind": "train", "step": 4, "epoch": 0})).encode() + b"\n"
    path.write_bytes(lines_of(range(1, 4)) + new)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    path.write_bytes(lines_of(range(1, 4)) + new + lines_of(range(5, 6)))
    with pytest.raises(DataError, match="line 5"):
        read_metrics(tmp_path)


def test_a_changed_digit_in_the_note_of_a_finished_run_is_noticed(tmp_path):
    note = {"settings": {"seed": 0}, "epoch": 2, "step": 40, "best_miou": 0.5, "targets_hash": None}
    path = tmp_path / FINISHED_FILE
    path.write_text(json.dumps(note))
    assert read_finished(tmp_path).step == 40
    path.write_text(json.dumps(with_checksum(note)))
    assert read_finished(tmp_path).step == 40
    for content in (path.read_text().replace("40", "41"), "[]", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"finished\.json: not a note"):
            read_finished(tmp_path)


def test_an_error_of_a_full_disk_names_the_file(tmp_path):
    program = "import sys; from pathlib import Path; from common.base.files import write_atomically"
    done = on_full_disk(f"{program}; write_atomically(Path(sys.argv[1]), bytes(9999))", tmp_path / "file")
    assert str(tmp_path / "file'") in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").write_bytes(b"a file")
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder" / "file", b"")
