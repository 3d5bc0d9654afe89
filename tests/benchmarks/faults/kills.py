"""Commands killed at random moments (SIGKILL), run again, and compared with undisturbed ones."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.faults import children, reading
from tests.benchmarks.faults.verdicts import Kind, Verdict, failure, judge, nothing_changed
from tests.benchmarks.faults.workshop import Case, convert_words

SWEEP_SECONDS = 9.0
"""About what an undisturbed sweep of one run takes, most of it the start of Python and PyTorch."""

PATIENCE_SECONDS = 40.0
"""How long a sweep is asked again while the child of the killed one still trains."""


@dataclass(frozen=True)
class Victim:
    """A command to kill.

    Attributes:
        words: of the command, and of the one that goes on where it was killed.
        again: the latter.
        seconds: that it takes undisturbed.
        same: whether what it left is what the undisturbed one leaves.
    """

    words: list[str]
    again: list[str]
    seconds: float
    same: Callable[[], bool]


def dump(case: Case) -> Victim:
    """A dump of eight scan-views."""
    words = case.workshop.dump_words(case.folder / "store")
    return Victim(words, words, case.workshop.seconds["dump"], lambda: same_store(case, "exact"))


def merge(case: Case) -> Victim:
    """A merge into a new store."""
    words = ["merge", "--from", str(case.workshop.path("exact")), "--to", str(case.folder / "store")]
    return Victim(words, words, case.workshop.seconds["merge"], lambda: same_store(case, "exact"))


def merge_archive(case: Case) -> Victim:
    """A merge into an archive."""
    archive = case.folder / "store.zip"
    words = ["merge", "--from", str(case.workshop.path("exact")), "--archive", str(archive)]

    def same() -> bool:
        return case.prepared(lambda: reading.digests(archive)) == case.workshop.digests["exact"]

    return Victim(words, words, case.workshop.seconds["merge archive"], same)


def convert(case: Case) -> Victim:
    """A conversion."""
    words = convert_words(case.workshop.path("exact"), case.folder / "store")
    return Victim(words, words, case.workshop.seconds["convert"], lambda: same_store(case, "converted"))


def repair(case: Case) -> Victim:
    """A repair of a store in which two files are damaged and one is missing."""
    store, names = case.copy("exact", "store"), case.workshop.scan_files["exact"]
    flipped = bytearray((store / names[0]).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (store / names[0]).write_bytes(flipped)
    (store / names[3]).write_bytes(b"")
    (store / names[5]).unlink()
    words = repair_words(case, store)
    return Victim(words, words, case.workshop.seconds["dump"], lambda: same_store(case, "exact"))


def train(case: Case) -> Victim:
    """A training run of four steps."""
    run = case.folder / "run"
    words, again = case.workshop.train_words(run), case.workshop.train_words(run, resume=True)
    return Victim(words, again, case.workshop.seconds["train"], lambda: same_run(case, run))


def train_resumed(case: Case) -> Victim:
    """The second half of a training run."""
    run = case.copy("half", "run")
    words = case.workshop.train_words(run, resume=True)
    return Victim(words, words, case.workshop.seconds["train"], lambda: same_run(case, run))


def repair_words(case: Case, store: Path) -> list[str]:
    """Words of the repair command."""
    return ["repair", *case.workshop.dump_words(store)[1:]]


def same_store(case: Case, reference: str) -> bool:
    """Whether a store holds the very files of the undisturbed one, and no other."""
    return reading.scan_file_bytes(case.folder / "store") == reading.scan_file_bytes(case.workshop.path(reference))


def same_run(case: Case, run: Path) -> bool:
    """Whether a run ended as the undisturbed one did."""
    left, right = case.prepared(lambda: [reading.run_digests(path) for path in (run, case.workshop.path("straight"))])
    return left == right


def killed(choose: Callable[[Case], Victim]) -> Callable[[Case], Verdict]:
    """An attack that kills a command once, or, for odd seeds, it and the one that goes on."""

    def attack(case: Case) -> Verdict:
        victim = choose(case)
        moments = []
        for words in [victim.words, victim.again][: 1 + case.seed % 2]:
            moments.append(float(case.generator.uniform(0.02, 1.0)) * victim.seconds)
            child = children.start_command(words, case.folder / "said")
            if not child.kill_after(moments[-1]):
                failed = failure(child.wait(), "before the kill")
                if failed:
                    return failed
        ended = children.run_command(victim.again, case.folder / "said")
        what = f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s and run again"
        return judge(ended, what, (str(case.folder),), victim.same, nothing_changed)

    return attack


def sweep(case: Case) -> Verdict:
    """A sweep is killed, not the run that it started; the same sweep again may only refuse while that one trains."""
    words, deadline = case.workshop.sweep_words(case.folder / "sweep"), time.monotonic() + PATIENCE_SECONDS
    child = children.start_command(words, case.folder / "said")
    moment = float(case.generator.uniform(0.05, 1.0)) * SWEEP_SECONDS
    child.kill_after(moment)
    what, run = f"killed after {moment:.2f} s and run again", case.folder / "sweep/full/seed0"
    try:
        while True:
            ended = children.run_command(words, case.folder / "said")
            verdict = judge(ended, what, ("another process", "train.log"), lambda: same_run(case, run), nothing_changed)
            if verdict.outcome != "named" or time.monotonic() > deadline:
                return verdict
            time.sleep(0.5)
    finally:
        end_children_in(case.folder)


def end_children_in(folder: Path) -> None:
    """End what the killed sweep of this very folder left behind."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if f"--run\0{folder}/".encode() in words:
                os.kill(int(process.name), signal.SIGKILL)


KINDS = (
    Kind("kill dump: dump", 14, killed(dump)),
    Kind("kill merge: into a folder", 12, killed(merge)),
    Kind("kill merge: into an archive", 8, killed(merge_archive)),
    Kind("kill convert: convert", 14, killed(convert)),
    Kind("kill repair: repair", 10, killed(repair)),
    Kind("kill train: from the start", 8, killed(train)),
    Kind("kill train: going on", 6, killed(train_resumed)),
    Kind("kill sweep: sweep", 3, sweep),
)
