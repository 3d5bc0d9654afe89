"""Files that are whole or absent, and checkpoints that are read without running what they hold."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.base.errors import CheckpointError
from common.base.files import replacing, write_atomically
from common.base.weights_hash import weights_hash
from common.training.checkpoint import (
    check_finite,
    check_fits,
    load_checkpoint,
    save_checkpoint,
)
from common.training.wrapped_weights import load_weights

REPOSITORY = Path(__file__).resolve().parents[2]

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from common.base.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


class RunsCode:
    """Unpickles by making a folder: harmless, and visible."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(3, 4, generator=generator),
        "layer.bias": torch.randn(3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- files ---


def test_write_replaces_the_whole_content_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"a longer first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_killed_writer_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_appears_only_at_the_end(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


# --- checkpoints: reading and writing ---


def test_checkpoint_survives_a_round_trip(tmp_path, weights):
    content = {"model": weights, "epoch": 3, "settings": {"name": "a", "rates": [0.1, 0.2]}, "best": None}
    save_checkpoint(tmp_path / "last.pt", content)
    back = load_checkpoint(tmp_path / "last.pt")
    assert same(back.pop("model"), weights)
    assert back == {"epoch": 3, "settings": {"name": "a", "rates": [0.1, 0.2]}, "best": None}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_failed_save_keeps_the_last_checkpoint(tmp_path, weights):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": weights})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, {"model": weights, "callback": lambda: None})
    assert same(load_weights(path, weights, "the student"), weights)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_with_code_is_refused_and_not_run(tmp_path, weights, legacy):
    path, marker = tmp_path / "hostile.pt", tmp_path / "ran"
    torch.save(weights | {"x": RunsCode(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert not marker.exists()
    assert str(path) in caught.value.message
    assert "state_dict()" in caught.value.message


def test_plain_pickle_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "hostile.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"x": RunsCode(marker)}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not marker.exists()


def test_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"state_dict\(\)"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.98])
def test_truncated_checkpoint_is_named(tmp_path, weights, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")


def test_bare_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="expected a dictionary"):
        load_checkpoint(tmp_path / "tensor.pt")


# --- checkpoints: weights ---


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_module_prefix_are_removed(tmp_path, weights, wrapper, prefix):
    content = {prefix + name: value for name, value in weights.items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "weights.pt")
    assert same(load_weights(tmp_path / "weights.pt", weights, "the student"), weights)


def test_safetensors_file(tmp_path, weights):
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "weights.safetensors")
    assert same(load_weights(tmp_path / "weights.safetensors", weights, "the student"), weights)


def test_other_entries_among_the_weights_are_named(tmp_path, weights):
    torch.save(weights | {"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="epoch"):
        load_weights(tmp_path / "weights.pt", weights, "the student")


def test_missing_and_unexpected_names_are_both_listed(weights):
    given = {"layer.weight": weights["layer.weight"], "head.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        check_fits("weights.pt", given, weights, "the student")
    lines = caught.value.message.splitlines()
    assert "weights.pt" in lines[0]
    assert "the student" in lines[0]
    assert lines[1].endswith("(2): layer.bias, norm.num_batches_tracked")
    assert lines[2].endswith("(1): head.weight")
    check_fits("weights.pt", weights, weights, "the student")


def test_many_missing_names_are_counted():
    with pytest.raises(CheckpointError, match=r"\(100\).* and 88 more"):
        check_fits("a", {}, {f"layer{row}": 0 for row in range(100)}, "b")


def test_other_shape_is_named_with_both_shapes(weights):
    with pytest.raises(CheckpointError, match=r"layer\.bias: \(3,\) in the file, \(5,\) in the model"):
        check_fits("a.pt", weights, weights | {"layer.bias": torch.zeros(5)}, "the student")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weight_that_is_not_finite_is_named(weights, value):
    check_finite("a.pt", weights)
    weights["layer.weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"layer\.weight"):
        check_finite("a.pt", weights)


def test_hash_depends_on_names_shapes_dtypes_and_values_only(tmp_path, weights):
    reference = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == reference
    transposed_in_memory = weights | {"layer.weight": weights["layer.weight"].t().contiguous().t()}
    assert weights_hash(transposed_in_memory) == reference
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pt")
    assert weights_hash(load_weights(tmp_path / "a.safetensors", weights, "the student")) == reference
    assert weights_hash(load_weights(tmp_path / "a.pt", weights, "the student")) == reference

    changed = {
        "value": weights | {"layer.bias": weights["layer.bias"] + 1e-6},
        "shape": weights | {"layer.bias": weights["layer.bias"][:, None]},
        "dtype": weights | {"layer.bias": weights["layer.bias"].double()},
        "name": {name.replace("bias", "offset"): value for name, value in weights.items()},
    }
    hashes = {weights_hash(other) for other in changed.values()}
    assert len(hashes | {reference}) == 5
