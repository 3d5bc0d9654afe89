"""The precision that a teacher computes with: which it is, what it is part of, and where it is refused."""

import json
from pathlib import Path

import pytest
import torch

from common.base.config import load_settings
from common.networks.cylinder3d import halve_sparse_network
from common.networks.sparse import sparse
from common.scans.dataset import open_dataset
from common.targets.store import TargetStore
from common.targets.store.manifest import MANIFEST
from stage1_dump_teacher.dump import dump_missing, identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer, read_scans
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.live_check import AGREEMENT
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, dump, fail, same_targets, succeed
from tests.shared.small_stores import EXACT, stage_one

CPU = torch.device("cpu")
TRAIN = "splits=[train]"


@pytest.fixture
def data(tmp_path) -> Path:
    write_dataset(tmp_path / "dataset", {"00": 2}, points=600)
    return tmp_path / "dataset"


def store_in(precision: str, data: Path, teacher: Path, folder: Path, *changes: str) -> TargetStore:
    """A store that says it is in some precision, of a teacher that computes in float32."""
    words = [f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}", TRAIN, f"precision={precision}", *EXACT, *changes]
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", words)
    dataset, loaded = open_dataset(data, settings.dataset), load_teacher(teacher, CPU)
    store = TargetStore.create_or_resume(folder, identity_of(settings, loaded, dataset.label_map))
    work = [(scan, 0) for scan in dataset.select(settings.splits).scans]
    prepare = preparer(ScanSource(settings, dataset), CPU, loaded, None)
    dump_missing(ScanWriter(store), loaded, work, settings, prepare, CPU)
    return store


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_a_cpu_computes_in_float32_only(data, tmp_path, reduced_teacher, precision):
    message = fail(dump(data, reduced_teacher, tmp_path / "cache", STREET_GRID, TRAIN, f"precision={precision}"))
    assert f"precision={precision} needs a GPU" in message
    assert not (tmp_path / "cache").exists()


def test_a_teacher_of_ones_own_computes_in_float32_only(data, tmp_path, reduced_teacher):
    (tmp_path / "teacher.txt").write_text("20")
    words = (TRAIN, "teacher=tests.extend.toy_teacher:HeightTeacher", "layers=[height]", "precision=tf32")
    message = fail(dump(data, tmp_path / "teacher.txt", tmp_path / "cache", STREET_GRID, *words))
    assert "'height' computes in float32 only" in message


def test_stores_in_float32_are_what_they_were_before_there_was_a_choice(data, tmp_path, reduced_teacher):
    plain = store_in("float32", data, reduced_teacher, tmp_path / "plain").identity
    assert "precision" not in plain.model_dump(mode="json")
    assert "precision" not in json.loads((tmp_path / "plain" / MANIFEST).read_text())["identity"]
    half = store_in("float16", data, reduced_teacher, tmp_path / "half").identity
    assert half.model_dump(mode="json") == plain.model_dump(mode="json") | {"precision": "float16"}
    assert half.hash != plain.hash
    assert TargetStore.open(tmp_path / "half").identity == half


def test_a_store_is_not_continued_in_another_precision(data, tmp_path, reduced_teacher):
    store_in("float16", data, reduced_teacher, tmp_path / "cache")
    message = fail(dump(data, reduced_teacher, tmp_path / "cache", STREET_GRID, TRAIN, *EXACT))
    assert "precision: the store has 'float16', this run has 'float32'" in message


def test_verify_names_the_agreement_and_info_the_precision(data, tmp_path, reduced_teacher):
    store_in("float16", data, reduced_teacher, tmp_path / "cache")
    words = ("--data", data, "--teacher", reduced_teacher, "--device", "cpu")
    output = succeed(stage_one("verify", "--cache", tmp_path / "cache", "--live", 1, *words))
    assert f"in float16 (within {AGREEMENT['float16']:.0e} of float32), the teacher in float32." in output
    assert "3.0e-02" in output
    assert "precision  float16" in succeed(stage_one("info", "--cache", tmp_path / "cache"))


def test_the_sparse_network_alone_changes_its_numbers(reduced_teacher, streets, semantic_kitti):
    model = load_teacher(reduced_teacher, CPU).model
    halve_sparse_network(model)
    kind = sparse().pytorch.conv.SparseConvolution
    convolutions = [module for module in model.modules() if isinstance(module, kind)]
    assert convolutions
    assert all(module.fp32_accum for module in convolutions)
    assert {tensor.dtype for tensor in model.cylinder_3d_generator.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in model.cylinder_3d_spconv_seg.parameters()} == {torch.float16}


def test_targets_are_float32_whatever_the_sparse_network_computes_with(data, reduced_teacher):
    words = [f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}", TRAIN]
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", words)
    dataset = open_dataset(data, settings.dataset)
    batch = read_scans(ScanSource(settings, dataset), [(dataset.select(settings.splits).scans[0], 0)]).batch
    single, double = load_teacher(reduced_teacher, CPU), load_teacher(reduced_teacher, CPU)
    # A CPU has no float16 here; float64 takes the same way in and out.
    double.model.cylinder_3d_spconv_seg.double()
    expected, found = (teacher.targets(batch, settings.layers, True) for teacher in (single, double))
    assert {layer.features.dtype for layer in (*found.layers.values(), *found.voxel_layers.values())} == {torch.float32}
    assert found.logits.dtype == torch.float32
    assert same_targets(found, expected, tolerance=1e-5)
