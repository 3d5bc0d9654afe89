"""Damaged training states, students, teachers and files of a run's folder, and the commands that meet them."""

from collections.abc import Callable
from pathlib import Path

import yaml

from common.base.config import load_settings
from stage2_train_student.settings import ExperimentSettings
from tests.benchmarks.faults import reading
from tests.benchmarks.faults.damage import damaged
from tests.benchmarks.faults.damaged_stores import reads_as, same_as_straight, spoil
from tests.benchmarks.faults.verdicts import Kind, Verdict, judge, nothing_changed
from tests.benchmarks.faults.workshop import TEACHER_CONFIG, TEACHER_SETTINGS, Case
from tests.shared.reduced import DATASET, STREET_GRID, experiment_file, experiment_overrides, settings_words

FIELDS = ("teacher_hash", "teacher's hash")
"""What an error may name where a changed teacher is found out because it is not the store's."""


def resume(case: Case) -> Verdict:
    """A run goes on from a damaged training state."""
    run = case.copy("half", "run")
    what = spoil(case, run / "last.pt", case.workshop.path("straight") / "student_last.pt")
    ended = case.command(*case.workshop.train_words(run, resume=True))
    return judge(ended, what, ("last.pt",), lambda: same_as_straight(case, run), nothing_changed)


def resume_teacher(case: Case) -> Verdict:
    """A training of a teacher goes on from a damaged state: it has nothing left to do, and writes its teacher again."""
    run = case.copy("teachers", "run")
    what = spoil(case, run / "last.pt", case.workshop.path("half") / "last.pt")
    words = ["train-teacher", "--data", case.workshop.path("data"), "--run", run, "--config", TEACHER_CONFIG]
    ended = case.command(*words, "--device", "cpu", "--resume", *settings_words(*TEACHER_SETTINGS))
    expected = (case.workshop.path("teachers") / "teacher_last.safetensors").read_bytes()
    again = run / "teacher_last.safetensors"
    return judge(ended, what, ("last.pt",), lambda: again.read_bytes() == expected, nothing_changed)


def run_file(name: str) -> Callable[[Case], Verdict]:
    """A run goes on with a damaged file of its folder; what it leaves must be as if nothing had happened."""

    def attack(case: Case) -> Verdict:
        run = case.copy("half", "run")
        path = run / name
        what = spoil(case, path, case.workshop.path("exact") / "manifest.json")
        ended = case.command(*case.workshop.train_words(run, resume=True))
        return judge(ended, what, (name,), lambda: same_as_straight(case, run), nothing_changed)

    return attack


def swept_file(name: str) -> Callable[[Case], Verdict]:
    """A finished sweep is asked for again with a damaged file in the folder of its run."""

    def attack(case: Case) -> Verdict:
        run = case.copy("straight", "sweep/full/seed0")
        what = spoil(case, run / name, case.workshop.path("exact") / "manifest.json")
        left = (run / "last.pt").stat().st_mtime_ns
        # One that starts a run does not take the damaged note for a finished one; waiting for that run proves no more.
        ended = case.command(*case.workshop.sweep_words(case.folder / "sweep"), limit=120)
        trained = (run / "last.pt").stat().st_mtime_ns != left
        return judge(ended, what, (name,), lambda: same_as_straight(case, run) or (trained and None), nothing_changed)

    return attack


def student(case: Case) -> Verdict:
    """A student's damaged weights are evaluated; the numbers must be those of the whole one."""
    run = case.copy("straight", "run")
    what = spoil(case, run / "student_last.pt", case.workshop.path("teachers") / "last.pt")
    words = ["evaluate", "--data", case.workshop.path("data"), "--run", run, "--device", "cpu"]
    ended = case.command(*words)
    return judge(ended, what, ("student_last.pt",), lambda: same_student(case, run), nothing_changed)


def same_student(case: Case, run: Path) -> bool:
    """Whether a run's student is, number for number, the undisturbed one."""
    paths = [run / "student_last.pt", case.workshop.path("straight") / "student_last.pt"]
    left, right = case.prepared(lambda: [reading.weights_digest(path) for path in paths])
    return left == right


def dump_on(case: Case) -> Verdict:
    """A dump goes on in its store with a teacher whose file was damaged meanwhile."""
    store, teacher = case.copy("exact", "store"), case.copy("teacher.pt")
    (store / case.workshop.scan_files["exact"][-1]).unlink()
    what = spoil(case, teacher, (case.workshop.path("teachers") / "teacher_last.safetensors"))
    ended = case.command(*dump_words(case, store, teacher))
    return judge(ended, what, ("teacher.pt", *FIELDS), lambda: reads_as(case, store, "exact"), nothing_changed)


def dump_with_ours(case: Case) -> Verdict:
    """A new dump with a damaged teacher that this program trained."""
    teacher = case.copy("teachers/teacher_last.safetensors", "teacher.safetensors")
    what = spoil(case, teacher, case.workshop.path("teacher.pt"))
    ended = case.command(*dump_words(case, case.folder / "store", teacher))

    def intact() -> bool:
        paths = [teacher, case.workshop.path("teachers") / "teacher_last.safetensors"]
        left, right = case.prepared(lambda: [reading.weights_digest(path) for path in paths])
        return left == right

    return judge(ended, what, ("teacher.safetensors",), intact, nothing_changed)


def dump_words(case: Case, store: Path, teacher: Path) -> list[str]:
    """Words of the dump command with another teacher."""
    usual = str(case.workshop.path("teacher.pt"))
    return [str(teacher) if word == usual else word for word in case.workshop.dump_words(store)]


def settings_file(case: Case) -> Verdict:
    """An experiment's YAML file is damaged: refused, or the settings it then says are taken."""
    path = case.folder / "experiment.yaml"
    path.write_bytes(yaml_of_baseline())
    spoilt, what = damaged(path.read_bytes(), b"\xff\xfe\x00[" * 9, case.seed, case.generator)
    path.write_bytes(spoilt)
    words = ["train", "--data", case.workshop.path("data"), "--experiment", path, "--run", case.folder / "run"]
    small = (*experiment_overrides(STREET_GRID), "student.width=4", "steps=1", "validate_on=[]", "batch_size=1")
    ended = case.command(*words, "--device", "cpu", *settings_words(*small))
    # A file that people write has no checksum: another number in it is another experiment, and is recorded as such.
    return judge(ended, what, ("experiment.yaml", "targets", "cache", "student"), lambda: None, nothing_changed)


def yaml_of_baseline() -> bytes:
    """The settings of the experiment without a teacher, in one file."""
    settings = load_settings(ExperimentSettings, experiment_file("baseline"), (f"dataset={DATASET}",))
    return yaml.safe_dump(settings.model_dump(mode="json")).encode()


KINDS = (
    Kind("training state: resume", 60, resume),
    Kind("training state: resume a teacher", 24, resume_teacher),
    Kind("run folder: settings.yaml", 6, run_file("settings.yaml")),
    Kind("run folder: environment.json", 6, run_file("environment.json")),
    Kind("run folder: metrics.jsonl", 12, run_file("metrics.jsonl")),
    Kind("run folder: finished.json", 6, run_file("finished.json")),
    Kind("run folder: finished.json in a sweep", 12, swept_file("finished.json")),
    Kind("student: evaluate", 48, student),
    Kind("teacher: dump goes on", 48, dump_on),
    Kind("teacher: dump with one trained here", 48, dump_with_ours),
    Kind("settings: experiment", 24, settings_file),
)
