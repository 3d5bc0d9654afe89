"""Loss terms and gradients from one-byte targets against those from float32 targets; used by bench_store."""

from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from common.base.config import load_settings
from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from stage1_dump_teacher.dump import dump_missing, identity_of, preparer
from stage1_dump_teacher.scan_writer import DumpReport, ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.step import losses, targets_of
from tests.golden.golden_files import REPOSITORY


def loss_agreement(
    teacher: Cylinder3DTeacher, exact: DumpSettings, store: TargetStore, data: Path, scan: ScanId, folder: Path
) -> dict[str, float]:
    """Largest relative difference of a distillation term, and cosine of the student's gradients, on one scan."""
    label_map, grid = load_label_map(exact.dataset), exact.grid.grid()
    reference = TargetStore.create_or_resume(folder, identity_of(exact, teacher, grid, label_map), {})
    prepare = preparer(exact, Dataset.open(data, label_map), grid)
    writer = ScanWriter(reference, DumpReport(), 1)
    dump_missing(writer, teacher, [(scan, 0)], exact, prepare, torch.device("cpu"))

    full_precision, expected = terms_and_gradient(reference, data, scan)
    one_byte, gradient = terms_and_gradient(store, data, scan, view=0)
    errors = {name: abs(one_byte[name] / value - 1.0) for name, value in full_precision.items() if value}
    numbers = {f"term_error.{name}": error for name, error in errors.items()}
    cosine = float(cosine_similarity(gradient.double(), expected.double(), dim=0))
    return {**numbers, "worst_term_error": max(errors.values()), "gradient_cosine": cosine}


def terms_and_gradient(
    store: TargetStore, data: Path, scan: ScanId, view: int = 0
) -> tuple[dict[str, float], torch.Tensor]:
    """Every loss term of one scan, and the gradient of their weighted sum with respect to all student weights."""
    settings = load_settings(
        ExperimentSettings, REPOSITORY / "configs/experiments/full.yaml", ["batch_size=1", "student.dropblock=0.0"]
    )
    label_map = load_label_map(settings.dataset)
    cpu = torch.device("cpu")
    source = TargetSource(store=store, channels=store.identity.layers)
    torch.manual_seed(0)
    state = new_state(settings, label_map, source, cpu)
    loader = student_data(settings, Dataset.open(data, label_map), source)
    epoch = next(epoch for epoch in range(1000) if loader.view_of(scan, epoch) == view)
    loaded = loader.load_batch([scan], epoch)
    torch.manual_seed(0)
    targets = targets_of(loaded, loaded.batch, None, cpu)
    weights = torch.from_numpy(label_map.class_weights())
    loss, terms = losses(
        state.networks.student.train(), state.networks.distillation.train(), loaded.batch, targets, weights
    )
    loss.backward()
    gradient = torch.cat(
        [weight.grad.flatten() for weight in state.networks.student.parameters() if weight.grad is not None]
    )
    return {name: float(value.detach()) for name, value in terms.items()}, gradient
