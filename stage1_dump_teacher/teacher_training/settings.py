"""Settings of a teacher's own training: one YAML file each."""

from typing import ClassVar, Literal

from pydantic import Field

from common.base.config import Settings
from common.base.config_files import DatasetFile
from common.scans.dataset import GridSettings
from common.scans.sequence_names import Names
from common.scans.view import ViewPolicy
from common.training.schedule import ScheduleSettings


class WidthSettings(Settings):
    """Channels of Cylinder3D; the defaults are the published model's.

    Attributes:
        base: width m of the first block; the others are 2m to 16m wide.
        point_channels: output of the point network.
        voxel_channels: compressed voxel features that enter the sparse network.
    """

    base: int = Field(32, ge=1)
    point_channels: int = Field(256, ge=1)
    voxel_channels: int = Field(16, ge=1)


class TeacherTrainingSettings(Settings):
    """How a Cylinder3D is trained. See `configs/teachers/train_cylinder3d.yaml`.

    Attributes:
        dataset: YAML file with classes, splits and label map.
        train: splits or sequences to train on; every scan needs labels.
        validate_on: splits or sequences for mIoU; without scans of them no mIoU is computed.
        grid: grid and volume of the teacher, and of every student that learns from it.
        widths: of the network.
        augmentation: how a fresh view of each scan is drawn every epoch; null leaves scans as they are.
        learning_rate: Adam's, the highest of the schedule.
        schedule: of the learning rate.
        epochs: passes over the training scans; a schedule other than `constant` is spread over them.
        steps: stop after so many steps in all; null for no limit.
        early_stopping: stop after so many validations without a better mIoU; null for never.
        batch_size: scans per step.
        loading_threads: threads that read and voxelise ahead.
        validate_every: epochs between validations.
        save_every: steps between saves of the training state, besides the one after every epoch; null for none.
        checkpoint_dtype: numbers in the teacher's checkpoint files; float16 halves them, training is float32.
        seed: of the weights, the order of scans and the views.
    """

    config_folder: ClassVar[str] = "teachers"

    dataset: DatasetFile
    train: Names = ["train"]
    validate_on: Names = ["val"]
    grid: GridSettings = GridSettings()
    widths: WidthSettings = WidthSettings()
    augmentation: ViewPolicy | None = ViewPolicy()
    learning_rate: float = Field(1e-3, gt=0)
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: int = Field(40, ge=1)
    steps: int | None = Field(None, ge=1)
    early_stopping: int | None = Field(None, ge=1)
    batch_size: int = Field(2, ge=1)
    loading_threads: int = Field(2, ge=1)
    validate_every: int = Field(1, ge=1)
    save_every: int | None = Field(None, ge=1)
    checkpoint_dtype: Literal["float32", "float16"] = "float32"
    seed: int = Field(0, ge=0)
