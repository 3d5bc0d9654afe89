"""`parameters.json` of an exported folder: everything that a program has to know beside the graphs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.base.config import Settings, load_json, parse_settings
from common.base.errors import SettingsError
from common.base.files import write_json
from common.base.weights_hash import weights_hash
from common.scans.label_map import UNKNOWN, ClassInfo, LabelMap
from common.scans.polar_grid import shape_problem
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.checksums import check_sums

PARAMETERS_FILE = "parameters.json"
AXES = ("rho in metres", "phi in radians", "z in metres")
POINT_FEATURE_NAMES = (
    *("rho - centre of its voxel", "phi - centre of its voxel", "z - centre of its voxel"),
    *("rho", "phi", "z", "x", "y", "remission"),
)


def exactly(expected: tuple[str, ...]) -> AfterValidator:
    """These words alone: graphs are made for one order of their inputs."""

    def check(found: tuple[str, ...]) -> tuple[str, ...]:
        if found != expected:
            raise ValueError(f"must be {', '.join(expected)}")
        return found

    return AfterValidator(check)


class GridNumbers(Settings):
    """A grid along three axes. Bins are (maximum - minimum) / (shape - 1) wide; what lies outside is clipped first."""

    minimum: tuple[float, float, float]
    maximum: tuple[float, float, float]
    shape: tuple[int, int, int]
    axes: Annotated[tuple[str, ...], exactly(AXES)]

    @model_validator(mode="after")
    def _is_a_grid(self) -> "GridNumbers":
        problem = shape_problem(self.shape)
        if problem:
            raise ValueError(f"shape: {problem}")
        if any(low >= high for low, high in zip(self.minimum, self.maximum, strict=True)):
            raise ValueError("minimum must be below maximum along each axis")
        return self


class Parameters(Settings):
    """What the file holds.

    Attributes:
        student_sha256: hash of the student's weights.
        dataset: whose classes these are.
        classes: by number, "unlabelled" first.
        unlabelled: number of the class that is never right.
        grid: that the student works on.
        point_features: the graphs' input of that name, in order.
        pillar_channels: width of `pillar_features`; None of a student without a map of pillars.
    """

    student_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dataset: str
    classes: list[ClassInfo] = Field(min_length=2, max_length=UNKNOWN - 1)
    unlabelled: Literal[0]
    grid: GridNumbers
    point_features: Annotated[tuple[str, ...], exactly(POINT_FEATURE_NAMES)]
    pillar_channels: Annotated[int, Field(ge=1)] | None

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, classes: list[ClassInfo]) -> list[ClassInfo]:
        names = [info.name for info in classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several are called {', '.join(twice)}; each needs a name of its own")
        return classes


def parameters_of(student: Student, settings: ExperimentSettings, label_map: LabelMap) -> Parameters:
    """Those of a student.

    Raises:
        SettingsError: classes of its dataset have the same name.
    """
    grid = settings.grid.grid()
    values = {
        "student_sha256": weights_hash(student.state_dict()),
        "dataset": label_map.name,
        "classes": [info.model_dump() for info in label_map.classes],
        "unlabelled": 0,
        "grid": {"minimum": grid.minimum, "maximum": grid.maximum, "shape": grid.shape, "axes": AXES},
        "point_features": POINT_FEATURE_NAMES,
        "pillar_channels": getattr(student, "map_channels", None),
    }
    return parse_settings(Parameters, values, f"dataset '{label_map.name}'")


def write_parameters(parameters: Parameters, folder: Path) -> None:
    """Write them into an exported folder."""
    write_json(folder / PARAMETERS_FILE, parameters.model_dump())


def check_same_student(folder: Path, expected: Parameters) -> None:
    """Refuse graphs of another student.

    Raises:
        SettingsError: an exported folder holds no parameters, damaged ones, or those of another student.
        CheckpointError: a graph is not as it was written.
    """
    path = folder / PARAMETERS_FILE
    try:
        found = load_json(Parameters, path)
    except SettingsError as error:
        raise SettingsError(f"{error.message}\nWrite the folder again with export.") from error
    if found.student_sha256 != expected.student_sha256:
        raise SettingsError(f"{folder}: the graphs here are of another student than that of the run; export that one")
    for name in ("grid", "pillar_channels", "classes"):
        if getattr(found, name) != getattr(expected, name):
            raise SettingsError(f"{path}: {name}: not as the student has it. Write the folder again with export.")
    check_sums(folder, (".onnx",))
