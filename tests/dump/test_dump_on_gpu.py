"""A dump on a pretended GPU: reading, encoding, copies and writing in threads give the same files as on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common.base.config import load_settings
from common.base.devices import CPU
from common.scans.dataset import open_dataset
from common.scans.scan_batch import ScanBatch
from common.targets.store import TargetStore
from common.targets.teacher import Teacher, TeacherShare
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.dump import dump_missing, identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.live_check import compare_live
from stage1_dump_teacher.teachers.averaged import POLICY, Average
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher
from tests.shared.pretended_gpu import GPU, pretended_gpu
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID
from tests.shared.small_stores import scan_files

ENCODINGS = ("encoding.pillar_features=int8_channel", "encoding.voxel_features=float16", "encoding.logits=int8_row")


@dataclass(frozen=True)
class OnCpu(Teacher):
    """A teacher that computes on a CPU, as spconv does here, and answers on the device that it is asked on."""

    name = "on_cpu"
    teacher: Cylinder3DTeacher
    hash: str

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "OnCpu":
        teacher = Cylinder3DTeacher.load(checkpoint, CPU)
        return cls(teacher, teacher.hash)

    @property
    def classes(self) -> int:
        return self.teacher.classes

    @property
    def channels(self) -> dict[str, int]:
        return self.teacher.channels

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        return self.teacher.targets(batch.to("cpu"), layers, voxel_features).to(batch.voxels.device)


@pytest.mark.parametrize("views", [1, 2])
def test_a_gpu_dumps_the_files_of_a_cpu(streets, reduced_teacher, tmp_path, views):
    words = [f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}", "voxel_features=true", "batch_size=4", *ENCODINGS]
    settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", [*words, "readers=2", "writers=2"])
    dataset, teacher = open_dataset(streets, settings.dataset), OnCpu.load(reduced_teacher, CPU)
    if views > 1:
        teacher = Average([teacher], [TeacherShare(views=views, policy=POLICY)], settings.grid.grid())
    items = [(scan, 0) for scan in dataset.select(["00"]).scans]

    def dumped(device: torch.device, gpu) -> TargetStore:
        identity = identity_of(settings, teacher, dataset.label_map)
        store = TargetStore.create_or_resume(tmp_path / device.type, identity)
        prepare = preparer(ScanSource(settings, dataset), device, teacher, None)

        def prepare_in_any_thread(items):
            with gpu.usable():
                return prepare(items)

        dump_missing(ScanWriter(store), teacher, items, settings, prepare_in_any_thread, device)
        return store

    with pretended_gpu() as gpu:
        dumped(CPU, gpu)
        store = dumped(GPU, gpu)
        [errors] = compare_live(store, teacher, dataset.files, items[:1], GPU)
    assert scan_files(tmp_path / "cuda") == scan_files(tmp_path / "cpu")
    assert len(scan_files(tmp_path / "cuda")) == len(items)
    assert all(error.explained for error in errors)
