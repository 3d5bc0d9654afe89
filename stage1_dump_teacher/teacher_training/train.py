"""Train a Cylinder3D of any width on a labelled dataset, for those who have no published checkpoint that fits."""

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.base.content_hash import sealed_safetensors
from common.base.errors import DataError, TrainingError
from common.base.files import write_atomically
from common.base.overlap import started_ahead
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import to_published
from common.scans.dataset import Dataset, open_dataset, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.polar_grid import VoxelisedScan
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, draw_view
from common.training.guarded_step import step_if_finite
from common.training.predictor import Predictor
from common.training.schedule import learning_rate_factor
from common.training.segmentation_loss import segmentation_terms
from common.training.small_batches import naming_small_batches
from common.training.state import TrainingState
from common.training.task import StepTerms, Task, loop_may_change
from common.training.trainer import Trainer
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings

LAST_TEACHER = "teacher_last.safetensors"
BEST_TEACHER = "teacher_best.safetensors"


class TeacherNetworks(NamedTuple):
    """What is trained."""

    teacher: Cylinder3D


TeacherState = TrainingState[TeacherNetworks]


def run(
    settings: TeacherTrainingSettings, data: Path, folder: Path, device: torch.device, resume: bool = False
) -> TeacherState:
    """Train a teacher into `folder`, or go on with the run there.

    The folder gets `teacher_last.safetensors` and, with validation, `teacher_best.safetensors`.

    Raises:
        DataError: a scan cannot be used, or has no labels.
        TrainingError: another process trains in `folder`, it holds a run already and `resume` is off, or the loss is
            not finite.
        CheckpointError: the run in the folder does not fit.
    """
    dataset = open_dataset(data, settings.dataset)
    settings.grid.check_fits(dataset.label_map)
    train = dataset.select(settings.train).scans
    require_labels(dataset, train)
    validation = validation_scans(settings, dataset)
    torch.manual_seed(settings.seed)
    state = new_state(settings, dataset.label_map, device)
    Trainer(TeacherTask(settings, state, dataset, train, validation, device), folder, device).run(resume)
    return state


class TeacherTask(Task[ScanBatch]):
    """A teacher as a `Trainer` sees it."""

    best, last = BEST_TEACHER, LAST_TEACHER
    settings: TeacherTrainingSettings

    def __init__(
        self,
        settings: TeacherTrainingSettings,
        state: TeacherState,
        dataset: Dataset,
        train: list[ScanId],
        validation: list[ScanId],
        device: torch.device,
    ) -> None:
        self.settings, self.state, self.dataset, self.device = settings, state, dataset, device
        self.train, self.validation = train, validation
        self.may_change = loop_may_change(settings.schedule) | {"checkpoint_dtype"}
        self.class_weights = torch.from_numpy(dataset.label_map.class_weights()).to(device)

    def load(self, batches: list[list[ScanId]], epoch: int) -> Iterator[ScanBatch]:
        """Batches of one epoch, loaded ahead by threads, each scan in a view of its own for every epoch."""
        settings, dataset, grid = self.settings, self.dataset, self.settings.grid.grid()
        policy, threads = settings.augmentation, settings.loading_threads

        def load(scan: ScanId) -> VoxelisedScan:
            view = IDENTITY if policy is None else draw_view(policy, scan, 1 + epoch, settings.seed)
            return voxelise_view(dataset.read(scan), view, grid, dataset.label_map)

        def load_batch(scans: list[ScanId]) -> ScanBatch:
            return batch_scans([load(scan) for scan in scans], grid.shape)

        for _, future in started_ahead(load_batch, batches, depth=2 * threads, threads=threads):
            yield future.result()

    def step(self, batches: Iterable[ScanBatch], scans: int, steps: int) -> StepTerms:
        """One step of Adam on cross entropy and Lovasz, as Cylinder3D was trained (Zhu et al., CVPR 2021, section 3.5).

        Raises:
            TrainingError: the loss is not finite, or the batch too small for a batch norm; the weights stay as they
                were.
        """
        [batch] = batches
        state, teacher, names = self.state, self.state.networks.teacher, ", ".join(batch.names)
        rate = self.settings.learning_rate * learning_rate_factor(state.step, steps, self.settings.schedule)
        if not batch.labelled:
            # A step would move batch statistics and Adam's momentum without having learned anything.
            tqdm.write(f"note: nothing to learn from scans {names}: no voxel has a label")
            state.step += 1
            return lambda: {"cross_entropy": 0.0, "lovasz": 0.0, "loss": 0.0, "learning_rate": rate}
        teacher.train()
        state.optimiser.zero_grad(set_to_none=True)
        batch = batch.to(self.device)
        with naming_small_batches(batch.scan_ids):
            logits = teacher(batch).logits
        terms = segmentation_terms(logits, batch.voxel_labels, self.class_weights)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        values = torch.stack([value.detach() for value in (*terms.values(), loss)])
        step_if_finite(state, rate, values)
        row = values.tolist()
        if not isfinite(row[-1]):
            raise TrainingError(
                f"step {state.step + 1}: the loss is {row[-1]} for scans {names}. Lower learning_rate, or look at "
                "these scans; the last saved state is intact."
            )
        state.step += 1
        return lambda: dict(zip((*terms, "loss"), row, strict=True)) | {"learning_rate": rate}

    def predictor(self) -> Predictor:
        teacher = self.state.networks.teacher.eval()
        return Predictor(lambda batch: teacher(batch).logits, self.settings.grid.grid(), self.device)

    def write_network(self, path: Path) -> None:
        save_teacher(path, self.state.networks.teacher, self.settings)


def new_state(settings: TeacherTrainingSettings, label_map: LabelMap, device: torch.device) -> TeacherState:
    """Teacher and optimiser before the first step."""
    widths = TeacherWidths(**settings.widths.model_dump(), classes=len(label_map.classes))
    teacher = Cylinder3D(widths, on_cpu=device.type == "cpu").to(device)
    optimiser = torch.optim.Adam(teacher.parameters(), lr=settings.learning_rate, fused=True)
    return TeacherState(TeacherNetworks(teacher), optimiser)


def require_labels(dataset: Dataset, scans: list[ScanId]) -> None:
    """Refuse scans without labels, of which a teacher learns nothing, with a DataError."""
    without = dataset.unlabelled(scans)
    if without:
        raise DataError(
            f"{len(without)} of {len(scans)} scans have no labels, the first is {without[0]}. A teacher is trained on "
            "labels; choose labelled splits (setting train or validate_on)."
        )


def validation_scans(settings: TeacherTrainingSettings, dataset: Dataset) -> list[ScanId]:
    """Scans to validate on; none, with a note, when none of the sequences is on this disk."""
    if not settings.validate_on:
        return []
    try:
        scans = dataset.select(settings.validate_on).scans
    except DataError as error:
        tqdm.write(f"note: no validation, so no best teacher will be chosen: {error.message}")
        return []
    require_labels(dataset, scans)
    return scans


def save_teacher(path: Path, teacher: Cylinder3D, settings: TeacherTrainingSettings) -> None:
    """Write the weights in the published layout, as safetensors, whole or not at all.

    Vectors stay float32: batch norm's running variances can be larger than float16 reaches, and they weigh little.
    """
    dtype = torch.float16 if settings.checkpoint_dtype == "float16" else torch.float32
    weights = {name: weight.to(dtype) if weight.ndim > 1 else weight for name, weight in to_published(teacher).items()}
    write_atomically(path, sealed_safetensors(weights))
