"""The plan of the proof: which caches and students there are, and which questions they answer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from common.base.config import Settings, load_settings
from stage2_train_student.comparison.planned_runs import PlannedRun
from stage2_train_student.settings import ExperimentSettings

PLAN = Path("configs/proof/plan.yaml")
HEADLINE, TERMS = "few_labels", "terms"
"""Questions that every plan asks: that whose first comparison is the demo's, and that about each loss term."""

BASELINE, FULL = "baseline", "full"
"""Students of the latter whose classes are shown."""


class TeacherPlan(Settings):
    """A teacher that is trained: a file of settings for `train-teacher`, and what is overridden in it."""

    config: Path
    set: list[str] = []


class CachePlan(Settings):
    """A store of targets: a file of settings for `dump`, and what is overridden in it.

    Attributes:
        teachers: of those that are trained, the ones averaged with the plan's own.
    """

    config: Path = Path("configs/demo/dump.yaml")
    set: list[str] = []
    teachers: list[str] = []


class StudentPlan(Settings):
    """A student: a file of settings for `train`, what is overridden in it, and where its targets come from.

    Attributes:
        cache: name of a cache of the plan; None for a student without a teacher, or with the teacher in the loop.
        about: what it is, in a few words, for tables.
    """

    config: Path
    set: list[str] = []
    cache: str | None = None
    about: str = ""


class Question(Settings):
    """A group of comparisons that are tested together.

    Attributes:
        asked: the question.
        seeds: students of each kind, with the seeds 0, 1, ...
        varied: in what two students may differ besides their teacher, since it is what is asked about: `views`,
            `mixed scans`.
        comparisons: student to the student that it is compared with.
    """

    asked: str
    seeds: int = Field(ge=2)
    varied: list[Literal["views", "mixed scans"]] = []
    comparisons: dict[str, str] = Field(min_length=1)

    def is_of(self, answer: Mapping[str, Any]) -> bool:
        """Whether an answer is one to this question as it is asked now."""
        compared = {row["student"]: row["reference"] for row in answer["comparisons"]}
        now = (self.asked, self.seeds, self.varied, self.comparisons)
        return now == (answer["asked"], answer["seeds"], answer["varied"], compared)

    def students(self) -> list[str]:
        """All that are compared, each once."""
        return list(dict.fromkeys(name for pair in self.comparisons.items() for name in reversed(pair)))


class Choice(Settings):
    """How the settings of the distillation were chosen: by mIoU on streets kept for that.

    Attributes:
        split: the streets.
        seed: of all these students; no question has it.
        student: of the plan, on whose settings those tried build.
        grid: weights tried, by term, the other terms 0.
        others: further settings tried, by name.
    """

    split: str
    seed: int
    student: str
    grid: dict[str, list[float]]
    others: dict[str, list[str]]

    def tried(self) -> dict[str, list[str]]:
        """Settings overridden in every student, by a name such as `logit20`, in order."""
        alone = {
            f"{term}{weight:g}": [f"distillation.{other}={weight if other == term else 0.0}" for other in self.grid]
            for term, weights in self.grid.items()
            for weight in weights
        }
        return alone | self.others


class Plan(Settings):
    """See `configs/proof/plan.yaml`.

    Attributes:
        streets: settings of the simulator.
        teacher: checkpoint.
        teachers: others, that are trained.
        split: streets that score the students; nothing was chosen by them.
    """

    config_folder: ClassVar[str] = "proof"

    streets: Path
    teacher: Path
    teachers: dict[str, TeacherPlan] = {}
    split: str
    choice: Choice
    caches: dict[str, CachePlan]
    students: dict[str, StudentPlan]
    questions: dict[str, Question]

    @model_validator(mode="after")
    def _names_are_known(self) -> "Plan":
        for name in (HEADLINE, TERMS):
            if name not in self.questions:
                raise ValueError(f"there is no question {name}")
        asked = [name for question in self.questions.values() for name in question.students()]
        for name in (BASELINE, FULL):
            if name not in self.questions[TERMS].students():
                raise ValueError(f"questions.{TERMS} lacks the student {name}")
        for name in [*asked, self.choice.student]:
            if name not in self.students:
                raise ValueError(f"there is no student {name}; there are: {', '.join(self.students)}")
        for name, cache in self.caches.items():
            if unknown := set(cache.teachers) - self.teachers.keys():
                raise ValueError(f"cache {name}: there is no teacher {min(unknown)}")
        for name, student in self.students.items():
            if student.cache is not None and student.cache not in self.caches:
                raise ValueError(f"student {name}: there is no cache {student.cache}")
            if name not in [*asked, self.choice.student]:
                raise ValueError(f"student {name} answers no question")
        return self


class Folders(NamedTuple):
    """Where the proof keeps its scans, caches and runs."""

    data: Path = Path("data/demo")
    caches: Path = Path("cache/proof")
    runs: Path = Path("runs/proof")


def load_plan(path: Path = PLAN) -> Plan:
    """Read a plan.

    Raises:
        SettingsError: it is not one.
    """
    return load_settings(Plan, path)


def changing(settings: Iterable[str]) -> list[str]:
    """Options that override settings."""
    return [word for change in settings for word in ("--set", change)]


def planned_run(
    plan: Plan, folders: Folders, name: str, seed: int, changes: tuple[str, ...] = (), place: str | None = None
) -> PlannedRun:
    """A student of the plan with a seed.

    Args:
        plan: the plan.
        folders: where its runs lie.
        name: of the student.
        seed: of the run.
        changes: settings overridden on top of the student's own.
        place: folder of its runs, within that of all runs; None for its name.

    Raises:
        SettingsError: its settings are wrong.
    """
    student = plan.students[name]
    changes = (*student.set, *changes, f"seed={seed}")
    settings = load_settings(ExperimentSettings, student.config, changes)
    folder = folders.runs / (place or name) / f"seed{seed}"
    words = ["--experiment", str(student.config), "--run", str(folder)]
    words += changing(changes)
    if settings.targets == "cache":
        words += ["--cache", str(folders.caches / str(student.cache))]
    elif settings.targets == "online":
        words += ["--teacher", str(plan.teacher)]
    return PlannedRun(f"{place or name}/seed{seed}", folder, settings, words)


def runs_of_question(plan: Plan, folders: Folders, question: Question) -> list[PlannedRun]:
    """Its students with the first seed, then all with the next."""
    return [planned_run(plan, folders, name, seed) for seed in range(question.seeds) for name in question.students()]


def runs_of_choice(plan: Plan, folders: Folders) -> list[PlannedRun]:
    """A student for each of the settings tried."""
    choice = plan.choice
    return [
        planned_run(plan, folders, choice.student, choice.seed, tuple(changes), f"choice/{name}")
        for name, changes in choice.tried().items()
    ]
