"""The doctor: healthy machines pass, every fault becomes a line with a next step, nothing crashes it."""

import shutil
from importlib import metadata

import pytest
import torch
from click.testing import CliRunner

from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import to_published
from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from common.scans.scatter import segment_max
from stage1_dump_teacher import device_checks
from stage1_dump_teacher import doctor as doctors
from stage1_dump_teacher.device_checks import check_copies, check_segment_max, check_spconv, sparse_code
from stage1_dump_teacher.doctor import (
    check_data,
    check_disk,
    check_teacher,
    doctor,
    run_check,
)
from stage1_dump_teacher.package_checks import check_packages, check_zarr, installed_spconv
from tests.shared.reduced import start

GIGABYTE = 10**9


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.pt"
    torch.save(to_published(Cylinder3D(TeacherWidths(32, 8, 4), on_cpu=True)), path)
    return path


@pytest.fixture
def free_space(monkeypatch):
    def set_free(size: float) -> None:
        usage = shutil._ntuple_diskusage(10 * GIGABYTE, 0, int(size))
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)

    return set_free


def test_healthy_machine_with_scans_and_teacher(sample_data, teacher, tmp_path):
    arguments = ["--data", sample_data, "--teacher", teacher, "--cache", tmp_path / "cache"]
    result = CliRunner().invoke(doctor, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "No problems found." in result.output
    assert "4 scans, 3 with labels; 00: 2; 08: 1; 11: 1" in result.output
    assert "Cylinder3D of base width 4, 20 classes" in result.output
    for name in ("python", "packages", "device", "spconv", "segment max", "torch-scatter", "zarr", "disk"):
        assert f" {name} " in result.output


def test_problems_are_counted_and_fail_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(doctors, "check_spconv", lambda _device: check_zarr())
    arguments = ["--data", str(tmp_path), "--teacher", str(tmp_path / "absent.pt"), "--cache", str(tmp_path)]
    result = CliRunner().invoke(doctor, arguments)
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "2 problems found." in result.output
    assert "velodyne" in result.output
    assert "absent.pt" in result.output


def test_crash_of_a_check_becomes_a_problem():
    def broken():
        raise OSError("libcuda.so: cannot open shared object file")

    result = run_check(broken)
    assert result.status == "problem"
    assert "libcuda.so" in result.finding
    assert result.next_step


def test_a_broken_pytorch_is_a_line_of_the_table(tmp_path):
    program = "import sys; sys.modules['torch'] = None; import polar_distill; polar_distill.main()"
    process = start("-c", program, "doctor", "--cache", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "problem  device         ModuleNotFoundError: import of torch halted" in output
    assert "Traceback" not in output
    assert "problems found." in output


def test_native_code_computes():
    assert check_segment_max().status == "ok"
    assert check_zarr().status == "ok"


def test_wrong_sparse_convolution_is_a_problem(monkeypatch):
    class WrongPool:
        def __init__(self, *_args, **_options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def submit(self, _function, _device):
            return self

        def result(self):
            return {"cpu": 1e-7, "cuda": 0.4}

    monkeypatch.setattr(device_checks, "ProcessPoolExecutor", WrongPool)
    assert check_spconv().status == "problem"


def test_any_build_of_spconv_will_do(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _name: ["spconv-cu99>=2.3.8,<2.4"])
    result = check_packages()
    assert result.status == "ok"
    assert installed_spconv() in result.finding
    monkeypatch.setattr(metadata, "distributions", list)
    assert "spconv is missing" in check_packages().finding


@pytest.mark.parametrize(
    ("capability", "found"),
    [((3, 7), "missing"), ((7, 5), "native"), ((9, 0), "native"), ((10, 0), "compiled"), ((12, 0), "compiled")],
)
def test_gpus_that_spconv_has_no_code_for_are_told(capability, found):
    assert sparse_code(capability).startswith(found)


def test_copies_from_the_device_are_checked(monkeypatch):
    assert check_copies("cpu").status == "ok"
    monkeypatch.setattr("common.base.records.start_to_host", lambda tensors: lambda: [tensor + 1 for tensor in tensors])
    result = check_copies("cpu")
    assert result.status == "problem"
    assert "30 of 30" in result.finding


def test_the_device_that_was_chosen_is_checked(tmp_path):
    result = CliRunner().invoke(doctor, ["--device", "cuda:77", "--cache", str(tmp_path)])
    assert result.exit_code == 1
    assert "'cuda:77'" in result.output


def test_wrong_segment_max_is_a_problem(monkeypatch):
    monkeypatch.setattr("common.scans.scatter.segment_max", lambda *arguments: segment_max(*arguments) + 1)
    assert check_segment_max().status == "problem"


@pytest.mark.parametrize(
    ("requirement", "named"),
    [("torch<1.0", "torch is"), ("no-such-package>=2", "no-such-package is missing")],
)
def test_package_outside_its_range_is_named(monkeypatch, requirement, named):
    monkeypatch.setattr(metadata, "requires", lambda _name: ["numpy>=1.0", requirement, "absent; extra == 'dev'"])
    result = check_packages()
    assert result.status == "problem"
    assert named in result.finding
    assert "absent" not in result.finding.replace("no-such-package", "")


def test_disk_with_too_little_room(sample_data, tmp_path, free_space):
    cache = tmp_path / "deep" / "cache"
    for free, status in [(8e6, "problem"), (60e6, "note"), (160e6, "ok")]:
        free_space(free)
        assert check_disk(cache, sample_data).status == status
    assert check_disk(cache, None).status == "note"
    assert not cache.exists()


def test_what_is_already_written_needs_no_more_room(sample_data, tmp_path, free_space):
    free_space(80e6)
    assert check_disk(tmp_path / "cache", sample_data).status == "note"
    (tmp_path / "cache" / "sequences").mkdir(parents=True)
    (tmp_path / "cache" / "sequences" / "000000.v0.zarr.zip").write_bytes(bytes(17_000_000))
    result = check_disk(tmp_path / "cache", sample_data)
    assert result.status == "ok"
    assert "17.0 MB are written" in result.finding


def test_room_of_a_url_is_not_asked_of_this_disk(tmp_path, semantic_kitti_yaml):
    names = {name for name, _ in doctors.checks(None, None, "s3://bucket/prefix", semantic_kitti_yaml)}
    assert names | {"disk"} == {name for name, _ in doctors.checks(None, None, str(tmp_path), semantic_kitti_yaml)}
    assert "disk" not in names


def test_cache_under_a_file_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_disk(tmp_path / "file" / "cache", None).status == "problem"


def test_scans_without_labels_are_a_note(sample_data, semantic_kitti_yaml):
    for labels in (sample_data / "sequences").glob("*/labels"):
        shutil.rmtree(labels)
    result = check_data(sample_data, semantic_kitti_yaml)
    assert result.status == "note"
    assert "0 with labels" in result.finding


def test_damaged_scan_and_unknown_label_are_named(sample_data, semantic_kitti_yaml):
    labels = label_path(sample_data, ScanId("00", "000000"))
    data = labels.read_bytes()
    labels.write_bytes(b"\x07\x00\x00\x00" + data[4:])
    result = run_check(lambda: check_data(sample_data, semantic_kitti_yaml))
    assert result.status == "problem"
    assert str(labels) in result.finding
    assert "[7]" in result.finding

    scan = scan_path(sample_data, ScanId("00", "000000"))
    scan.write_bytes(scan.read_bytes()[:-3])
    result = run_check(lambda: check_data(sample_data, semantic_kitti_yaml))
    assert str(scan) in result.finding


def test_sequence_folder_without_scans_does_not_matter(sample_data, semantic_kitti_yaml):
    (sample_data / "sequences" / "01").mkdir()
    assert check_data(sample_data, semantic_kitti_yaml).status == "ok"


def test_teacher_of_another_network_is_a_problem(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    result = run_check(lambda: check_teacher(tmp_path / "other.pt"))
    assert result.status == "problem"
    assert "not a Cylinder3D checkpoint" in result.finding
