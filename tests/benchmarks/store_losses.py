"""Loss terms and gradients from one-byte targets against those from float32 targets; used by bench_store."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from common.base.config import load_settings
from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.store import TargetEncoding, TargetStore
from common.targets.store.layout import FileLayout, attributes_of
from common.targets.store.members import read_members
from common.targets.store.scan_file import scan_file_bytes
from common.targets.store.scan_file import targets_of as targets_in
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.dump import dump_missing, identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.step import losses
from tests.golden.golden_files import REPOSITORY


class Taught(NamedTuple):
    """Every loss term of one scan, and the gradient of their weighted sum with respect to all student weights."""

    terms: dict[str, float]
    gradient: torch.Tensor


class LossProbe:
    """One scan, its float32 targets, and a new student: what other targets change for it.

    Attributes:
        exact: the targets in float32.
    """

    def __init__(self, teacher: Cylinder3DTeacher, exact: DumpSettings, data: Path, scan: ScanId, folder: Path) -> None:
        """Dump the float32 targets into a folder, and train on them once."""
        label_map = load_label_map(exact.dataset)
        store = TargetStore.create_or_resume(folder, identity_of(exact, teacher, label_map), {})
        dataset, cpu = Dataset.open(data, label_map), torch.device("cpu")
        prepare = preparer(ScanSource(exact, dataset), cpu, teacher, None)
        dump_missing(ScanWriter(store), teacher, [(scan, 0)], exact, prepare, cpu)
        self.exact, _ = store.read(scan, 0, None)
        settings = load_settings(
            ExperimentSettings, REPOSITORY / "configs/experiments/full.yaml", ["batch_size=1", "student.dropblock=0.0"]
        )
        source = TargetSource(store=store, channels=store.identity.layers)
        torch.manual_seed(0)
        self.networks = new_state(settings, label_map, source, cpu).networks
        self.batch = student_data(settings, dataset, source).load_batch([scan], 0).batch
        self.class_weights = torch.from_numpy(label_map.class_weights())
        self.expected = self.taught(self.exact)

    def taught(self, targets: TeacherTargets) -> Taught:
        """What the student learns from some targets of the scan."""
        student, distillation = self.networks.student.train(), self.networks.distillation.train()
        torch.manual_seed(0)
        loss, terms = losses(student, distillation, self.batch, targets, self.class_weights)
        gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        return Taught({name: float(value.detach()) for name, value in terms.items()}, flat.double())

    def agreement(self, targets: TeacherTargets) -> dict[str, float]:
        """Relative differences of the terms, the largest of them, cosine of the student's gradients, and the share of
        voxels whose most likely class stays.
        """
        found = self.taught(targets)
        errors = {name: abs(found.terms[name] / value - 1.0) for name, value in self.expected.terms.items() if value}
        same = (targets.logits.argmax(1) == self.exact.logits.argmax(1)).double().mean()
        return {
            **{f"term_error.{name}": error for name, error in errors.items()},
            "worst_term_error": max(errors.values()),
            "gradient_cosine": float(cosine_similarity(found.gradient, self.expected.gradient, dim=0)),
            "same_class": float(same),
        }

    def choices(
        self, encodings: Iterable[tuple[str, TargetEncoding]], grid_shape: tuple[int, int, int]
    ) -> Iterator[dict[str, Any]]:
        """Size, seconds of CPU to encode and compress, and `agreement` of some ways to store the targets."""
        for name, encoding in encodings:
            start = time.process_time()
            stored = scan_file_bytes(self.exact, grid_shape, encoding, {})
            seconds = time.process_time() - start
            members = read_members(stored)
            layout = attributes_of(members, FileLayout)
            targets = targets_in(members, layout, list(self.exact.layers), voxel_features=False).decode()
            yield {"choice": name, "bytes": len(stored), "cpu_s": seconds, **self.agreement(targets)}
