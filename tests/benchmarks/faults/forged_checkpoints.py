"""Forged teachers, students and training states: code in pickles, other formats under this name, odd tensors."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.benchmarks.faults.damaged_runs import dump_words, same_student
from tests.benchmarks.faults.damaged_stores import same_as_straight
from tests.benchmarks.faults.verdicts import Kind, Verdict, each, judge
from tests.benchmarks.faults.workshop import Case

WEIGHT = "conv1.weight"
TRACE = "code_was_run"

Content = dict[str, Any]


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def saved(content: Any) -> bytes:
    """As `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def tensors_of(content: Content) -> Content:
    """The weights of a plain state dict, or those inside a training state."""
    found: Content = content.get("student", content)
    return found


def with_tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Content, Path], bytes]:
    """Another tensor in the place of the first one of floats with two axes or more."""

    def forge(content: Content, folder: Path) -> bytes:
        weights = tensors_of(content)
        name = next(key for key, value in weights.items() if value.is_floating_point() and value.ndim > 1)
        weights[name] = change(weights[name])
        return saved(content)

    return forge


def with_weights(change: Callable[[Content], Any]) -> Callable[[Content, Path], bytes]:
    """Other names among the weights."""

    def forge(content: Content, folder: Path) -> bytes:
        change(tensors_of(content))
        return saved(content)

    return forge


def first(weights: Content) -> str:
    """A name among the weights."""
    return next(iter(weights))


def zip_bomb(content: Content, folder: Path) -> bytes:
    """The zip that `torch.save` writes, compressed, with a member that unpacks to far more than it weighs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as honest, zipfile.ZipFile(buffer, "w") as archive:
        for name in honest.namelist():
            archive.writestr(name, honest.read(name), zipfile.ZIP_DEFLATED)
        archive.writestr(f"{honest.namelist()[0].partition('/')[0]}/bomb", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def safetensors_header(header: bytes, length: int | None = None) -> Callable[[Content, Path], bytes]:
    """A safetensors file with this header."""
    return lambda content, folder: struct.pack("<Q", len(header) if length is None else length) + header + bytes(64)


def float_weights(content: Content) -> dict[str, torch.Tensor]:
    """Weights for safetensors."""
    return {name: value.clone() for name, value in tensors_of(content).items() if isinstance(value, torch.Tensor)}


FORGERIES: dict[str, Callable[[Content, Path], bytes]] = {
    "code in a pickle": lambda content, folder: saved(content | {"more": Code(folder / TRACE)}),
    "code in a bare pickle": lambda content, folder: pickle.dumps(Code(folder / TRACE)),
    "code in a legacy file": lambda content, folder: legacy(Code(folder / TRACE)),
    "a module in a pickle": lambda content, folder: saved(torch.nn.Linear(2, 2)),
    "HTML": lambda content, folder: b"<!DOCTYPE html><html><body>404: Not Found</body></html>\n",
    "a git-lfs pointer": lambda content, folder: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 14332747\n"
    ),
    "text": lambda content, folder: b"learning_rate: 0.001\n" * 100,
    "JSON": lambda content, folder: json.dumps({"message": "Not Found"}).encode(),
    "a gzip": lambda content, folder: b"\x1f\x8b\x08\x00" + bytes(4000),
    "safetensors under this name": lambda content, folder: save(float_weights(content)),
    "a zip of something else": lambda content, folder: zip_of_text(),
    "a compressed zip": zip_bomb,
    "a list": lambda content, folder: saved([torch.zeros(3)]),
    "a tensor": lambda content, folder: saved(torch.zeros(3)),
    "nothing in it": lambda content, folder: saved({}),
    "numbers for names": lambda content, folder: saved({1: torch.zeros(3), 2: torch.zeros(3)}),
    "NaN in a tensor": with_tensor(lambda value: value * float("nan")),
    "infinity in a tensor": with_tensor(lambda value: value / 0.0),
    "a sparse tensor": with_tensor(lambda value: value.to_sparse()),
    "a tensor of integers": with_tensor(lambda value: value.int()),
    "a complex tensor": with_tensor(lambda value: value.to(torch.complex64)),
    "a tensor of bools": with_tensor(lambda value: value > 0),
    "a tensor without data": with_tensor(lambda value: value.to("meta")),
    "a tensor of 1e12 numbers from one": with_tensor(lambda value: torch.zeros(1).expand(10**6, 10**6)),
    "a transposed tensor": with_tensor(lambda value: value.transpose(0, 1).contiguous()),
    "a tensor of fewer rows": with_tensor(lambda value: value[:-1].clone()),
    "a text for a tensor": with_tensor(lambda value: "weights"),
    "a list for a tensor": with_tensor(lambda value: [1.0, 2.0]),
    "quantised numbers": with_tensor(lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "a missing tensor": with_weights(lambda weights: weights.pop(first(weights))),
    "one tensor more": with_weights(lambda weights: weights.update({"more": torch.zeros(2)})),
    "a name of terminal codes": with_weights(lambda weights: weights.update({"\x1b[2J\x07": torch.zeros(2)})),
    "a million names": with_weights(lambda weights: weights.update({f"x{n}": 0 for n in range(1_000_000)})),
}
SAFETENSORS: dict[str, Callable[[Content, Path], bytes]] = {
    "a header of 1e18 bytes": safetensors_header(b"{}", 10**18),
    "a header of nothing": safetensors_header(b""),
    "a header that is a list": safetensors_header(b"[]"),
    "a header 100,000 deep": safetensors_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a tensor of 1e18 numbers": safetensors_header(
        b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,64]}}'
    ),
    "offsets backwards": safetensors_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[64,48]}}'),
    "metadata that is a number": safetensors_header(b'{"__metadata__": 3}'),
    "a pickle under this name": lambda content, folder: saved(content),
    "NaN in all": lambda content, folder: save({n: v * float("nan") for n, v in float_weights(content).items()}),
}


def legacy(content: Any) -> bytes:
    """As versions of PyTorch before 1.6 wrote it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zip_of_text() -> bytes:
    """A zip without a checkpoint in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("README.md", "weights are elsewhere")
    return buffer.getvalue()


def forged(case: Case, source: Path, target: Path, forgeries: dict[str, Any], how: str) -> None:
    """Write a forgery of a checkpoint."""

    def write() -> None:
        content = torch.load(source, weights_only=True)
        target.write_bytes(forgeries[how](content, case.folder))

    case.prepared(write)


def code_was_run(case: Case) -> str:
    """Whether a checkpoint's code was run, in words."""
    return "ran the code in the file" if (case.folder / TRACE).exists() else ""


def teacher(case: Case, how: str) -> Verdict:
    """A dump with a forged teacher."""
    path = case.folder / "forged.pt"
    forged(case, case.workshop.path("teacher.pt"), path, FORGERIES, how)
    return dump_with(case, path, how)


def teacher_in_safetensors(case: Case, how: str) -> Verdict:
    """A dump with a forged teacher in safetensors."""
    path = case.folder / "forged.safetensors"
    forged(case, case.workshop.path("teacher.pt"), path, SAFETENSORS, how)
    return dump_with(case, path, how)


def dump_with(case: Case, path: Path, how: str) -> Verdict:
    """A dump with a teacher."""
    ended = case.command(*dump_words(case, case.folder / "store", path))
    honest = how in ("safetensors under this name", "a compressed zip")
    return judge(ended, how, (path.name,), lambda: None if honest else False, lambda: code_was_run(case))


def student(case: Case, how: str) -> Verdict:
    """An evaluation with a forged student."""
    run = case.copy("straight", "run")
    path = run / "student_last.pt"
    forged(case, path, path, FORGERIES, how)
    ended = case.command("evaluate", "--data", case.workshop.path("data"), "--run", run, "--device", "cpu")
    return judge(ended, how, (path.name,), lambda: same_student(case, run), lambda: code_was_run(case))


def state(case: Case, how: str) -> Verdict:
    """A run goes on from a forged training state."""
    run = case.copy("half", "run")
    forged(case, run / "last.pt", run / "last.pt", FORGERIES, how)
    ended = case.command(*case.workshop.train_words(run, resume=True))
    return judge(ended, how, ("last.pt",), lambda: same_as_straight(case, run), lambda: code_was_run(case))


def in_state(**changes: Any) -> Callable[[Content, Path], bytes]:
    """Other entries in a training state; `...` removes one."""

    def forge(content: Content, folder: Path) -> bytes:
        kept = {name: value for name, value in content.items() if changes.get(name) is not ...}
        return saved(kept | {name: value for name, value in changes.items() if value is not ...})

    return forge


ENTRIES = ("settings", "student", "distillation", "optimiser", "scaler", "progress", "random_state", "targets_hash")
STATES: dict[str, Callable[[Content, Path], bytes]] = {
    **{f"no {name}": in_state(**{name: ...}) for name in ENTRIES},
    **{f"{name} that is a list": in_state(**{name: [1, "two"]}) for name in ENTRIES},
    **{f"{name} that is empty": in_state(**{name: {}}) for name in ENTRIES},
    "progress of a text": in_state(progress={"epoch": "one", "step": "two"}),
    "progress of other fields": in_state(progress={"save": 3, "student": 4}),
    "progress of NaN": in_state(progress={"epoch": 0, "step_in_epoch": float("nan"), "step": 2, "best_miou": 0.5}),
    "negative progress": in_state(progress={"epoch": -1, "step_in_epoch": -5, "step": -2, "best_miou": -1.0}),
    "a random state of other size": in_state(random_state={"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}),
    "a random state of floats": in_state(random_state={"cpu": torch.zeros(5056), "cuda": []}),
    "a hash of terminal codes": in_state(targets_hash="\x1b[2J"),
}


def odd_state(case: Case, how: str) -> Verdict:
    """A run goes on from a training state with odd entries."""
    run = case.copy("half", "run")
    forged(case, run / "last.pt", run / "last.pt", STATES, how)
    ended = case.command(*case.workshop.train_words(run, resume=True))
    return judge(ended, how, ("last.pt",), lambda: same_as_straight(case, run), lambda: code_was_run(case))


KINDS: tuple[Kind, ...] = (
    each("forged teacher: dump", tuple(FORGERIES), teacher),
    each("forged teacher: dump from safetensors", tuple(SAFETENSORS), teacher_in_safetensors),
    each("forged student: evaluate", tuple(FORGERIES), student),
    each("forged state: resume", tuple(FORGERIES), state),
    each("forged state: resume with odd entries", tuple(STATES), odd_state),
)
