"""What a run records about where it ran, and the choice of a device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import __version__
from common.base.devices import select_device
from common.base.environment import environment, git_state, package_version
from common.base.errors import SettingsError
from common.networks.sparse import sparse

REPOSITORY = Path(__file__).resolve().parents[2]

IMPORT_WITHOUT_SPCONV = """
import importlib, pkgutil, sys
sys.modules["spconv"] = None
for name in ("common", "stage2_train_student"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        importlib.import_module(module.name)
stages = {name.partition(".")[0] for name in sys.modules if name.startswith("stage")}
assert stages == {"stage2_train_student"}, stages
"""


def test_stage_two_imports_neither_spconv_nor_stage_one():
    command = [sys.executable, "-c", IMPORT_WITHOUT_SPCONV]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_where_there_is_no_gpu_spconv_describes_none_of_its_kernels():
    """That takes seconds in every process that loads a teacher."""
    assert bool(sparse().algo.CONV.all_desps) == torch.cuda.is_available()


def git(folder, *arguments):
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_environment_is_plain_and_complete():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["project"] == __version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["zarr"].startswith("3.")
    assert found["processors"] >= 1
    assert len(found["devices"]) == torch.cuda.device_count()


def test_package_that_is_not_installed_has_no_version():
    assert package_version("no-such-package-at-all") is None


def test_git_state_of_a_checkout(tmp_path):
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, False)
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "untracked").write_text("b")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (commit, True)


def test_installed_copy_inside_another_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") == (None, None)


def test_git_that_is_missing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, None)


def test_cpu_is_always_there():
    assert select_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_if_there_is_one():
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "mps"])
def test_unknown_device_is_refused_with_the_choices(name):
    with pytest.raises(SettingsError, match="auto, cpu, cuda"):
        select_device(name)


def test_cuda_with_a_pytorch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SettingsError, match="built without CUDA"):
        select_device("cuda")


def test_cuda_without_a_usable_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="nvidia-smi") as caught:
        select_device("cuda:1")
    assert "'cuda:1'" in caught.value.message


def test_gpu_number_out_of_range(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match="cuda:0 to cuda:1"):
        select_device("cuda:2")


def test_auto_does_not_hide_a_broken_gpu(monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "Old GPU")
    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(SettingsError, match="no kernel image") as caught:
        select_device("auto")
    assert "Old GPU" in caught.value.message
    assert "more lines" not in caught.value.message
