"""Settings of an experiment: one YAML file in `configs/experiments/` each."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from common.base.config import Settings
from common.base.config_files import DatasetFile
from common.base.environment import processors_of_rank
from common.scans.dataset import GridSettings
from common.scans.sequence_names import Names
from common.scans.view import ViewPolicy
from common.targets.mixing import MixSettings, most_sectors
from common.training.schedule import ScheduleSettings
from stage2_train_student.distillation.settings import DistillationSettings
from stage2_train_student.students.student import StudentSettings

MOST_THREADS = 8


class AugmentationSettings(Settings):
    """Which views of a scan the student sees when they are not those of a cache.

    Attributes:
        count: null draws a fresh view every epoch, another for each `seed` of the experiment; K chooses among K fixed
            views, the same ones as a cache with `views.count: K` and the same policy holds.
        policy: how views are drawn.
    """

    count: int | None = Field(None, ge=1)
    policy: ViewPolicy = ViewPolicy()


class OptimiserSettings(Settings):
    """Adam, as in the original, and what is done to its gradients and learning rate.

    Attributes:
        learning_rate: the highest of the schedule.
        weight_decay: L2 penalty.
        schedule: of the learning rate.
        accumulate: batches whose gradients are averaged into one step.
        clip_norm: largest 2-norm of all gradients together, longer ones are scaled down to it; null for any.
    """

    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: ScheduleSettings = ScheduleSettings()
    accumulate: int = Field(1, ge=1)
    clip_norm: float | None = Field(None, gt=0)


class ExperimentSettings(Settings):
    """One experiment of stage two.

    Attributes:
        dataset: YAML file with classes, splits and label map.
        train: splits or sequences to train on.
        labels: splits or sequences of `train` whose labels are used; the scans of others join the distillation only, as
            scans without labels do. null uses all labels that there are.
        label_every: use the labels of every so many-th scan of a sequence only, from its first one on: 10 or 100 for
            trainings with 10 or 1 % of the labels. With `targets: none` the student sees these scans only.
        validate_on: splits or sequences for mIoU after each epoch; without scans of them no mIoU is computed.
        grid: the grid and volume; with targets they must be the teacher's.
        teacher: kind of a live teacher: `cylinder3d`, or a class of your own such as `my_package.my_file:MyTeacher`.
        targets: where the teacher's targets come from: `cache`; `online`, the teacher in the loop; `none`.
        augmentation: views of the student's scans for `online` and `none`; null leaves scans as they are. With `cache`
            the views are those of the store.
        views: of a cache; `replay` shows the stored views as they are, `anchors` draws a flip and a rotation by whole
            cells of the teacher's coarsest layer and composes the targets of the stored anchors on both sides of it.
        mix: mix another training scan into scans by azimuth sectors, in every epoch another one; their targets with
            them. null for none.
        student: the network.
        distillation: weights of the terms.
        optimiser: Adam's settings.
        averaging: decay of an exponential moving average of the weights, such as 0.999; the average is then what is
            validated and saved as the student. null for none.
        precision: of the networks' products; weights, losses and optimiser are float32. `float32` is IEEE everywhere;
            `tf32` rounds their factors on a GPU, which is several times faster there, and is float32 on a CPU;
            `bfloat16` and `float16` are autocast, the latter scales the loss and needs CUDA.
        sync_batch_norm: in several processes, batch norms take their statistics over the whole batch; false leaves each
            process with those of its part, which is faster and trains otherwise than one process would.
        compile: compile the bird's-eye-view network with `torch.compile`.
        cuda_graphs: replay the bird's-eye-view network and the adapters from CUDA graphs, on one GPU with one batch a
            step where nothing is compiled; takes a second at the start, and changes nothing but speed.
        epochs: passes over the training scans; a schedule other than `constant` is spread over them.
        steps: stop after so many steps in all; null for no limit. It does not shorten a schedule.
        early_stopping: stop after so many validations without a better mIoU; null for never.
        batch_size: scans per batch, those of all processes together; a step takes `optimiser.accumulate` batches.
        loading_threads: threads that read and voxelise ahead of the training loop; null for 2 on a CPU, and for as many
            as there are cores on a GPU, at most 8.
        validate_every: epochs between validations.
        save_every: steps between saves of the training state, besides the one after every epoch; null for none.
        seed: of the weights, the order of scans, the choice of views or the draw of fresh ones, and what is mixed.
    """

    config_folder: ClassVar[str] = "experiments"

    dataset: DatasetFile
    train: Names = Field(["train"], min_length=1)
    labels: Names | None = Field(None, min_length=1)
    label_every: int = Field(1, ge=1)
    validate_on: Names = ["val"]
    grid: GridSettings = GridSettings()
    teacher: str = "cylinder3d"
    targets: Literal["cache", "online", "none"] = "cache"
    augmentation: AugmentationSettings | None = None
    views: Literal["replay", "anchors"] = "replay"
    mix: MixSettings | None = None
    student: StudentSettings = StudentSettings()
    distillation: DistillationSettings = DistillationSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    averaging: float | None = Field(None, gt=0, lt=1)
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    sync_batch_norm: bool = True
    compile: bool = False
    cuda_graphs: bool = True
    epochs: int = Field(40, ge=1)
    steps: int | None = Field(None, ge=1)
    early_stopping: int | None = Field(None, ge=1)
    batch_size: int = Field(2, ge=1)
    loading_threads: int | None = Field(None, ge=1)
    validate_every: int = Field(1, ge=1)
    save_every: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**64)

    def threads(self, device: torch.device) -> int:
        """Threads that load batches for a device."""
        return self.loading_threads or (2 if device.type == "cpu" else min(MOST_THREADS, processors_of_rank()))

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSettings":
        if self.targets == "cache" and self.augmentation is not None:
            raise ValueError(
                "augmentation: with targets: cache the views are those of the store; set augmentation=null"
            )
        if self.targets != "cache" and self.views != "replay":
            raise ValueError(f"views: {self.views} reads a cache, but targets is {self.targets}; set views=replay")
        most = most_sectors(self.grid.shape[1])
        if self.mix is not None and self.mix.sectors > most:
            raise ValueError(f"mix.sectors: {self.grid.shape[1]} azimuth bins have room for {most} at most")
        if self.targets == "none" and self.labels is not None:
            raise ValueError("labels: with targets: none a scan without labels teaches nothing; leave it out of train")
        if self.targets == "none" and self.distillation.weights:
            raise ValueError("distillation: targets: none has no teacher; set the weights logit, vpd and lwd to 0")
        if self.targets != "none" and not self.distillation.weights:
            raise ValueError(f"distillation: all weights are 0, so targets: {self.targets} would not be used")
        return self
