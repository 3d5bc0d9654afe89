"""The small things that are attacked: a dataset, teachers, stores, an archive and training runs, made once."""

import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.targets.store.storage import FolderStorage
from tests.benchmarks.faults import children, reading
from tests.benchmarks.faults.children import Child, Ended
from tests.benchmarks.faults.verdicts import generator_of
from tests.golden.golden_files import golden_weights
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, experiment_file, experiment_overrides, settings_words
from tests.shared.reduced import train_words as words_of_train
from tests.shared.small_stores import EXACT_FULL, TRAIN, dump_words
from tests.targets.store.made_up_targets import fill

SCANS = {"00": 3, "08": 1}
POINTS = 800
STEPS = 4
QUICK = ("batch_size=1", "epochs=2", "loading_threads=1", "student.width=4", "save_every=1", "validate_on=[]")
ENCODINGS = {"zstd": ("float16", "zstd"), "lz4": ("int8_row", "lz4"), "plain": ("float32", "none")}
"""Encoding and codec of the made-up stores, by name."""

TEACHER_CONFIG = CONFIGS / "teachers/train_cylinder3d.yaml"
TEACHER_SETTINGS = (
    f"dataset={DATASET}",
    f"grid.shape={list(STREET_GRID)}",
    "widths={base: 4, point_channels: 16, voxel_channels: 8}",
    "epochs=1",
    "steps=1",
)


@dataclass
class Workshop:
    """What is attacked; cases copy from it and never change it.

    Attributes:
        root: the folder that holds everything.
        seconds: how long each command took undisturbed, by name.
        digests: what every scan-view of the stores holds, by name of the store.
    """

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """One of: data, teacher.pt, exact, train, zstd, lz4, plain, archive.zip, merged, converted, repaired,
        half (a run after two steps), straight (the same after four), teachers (a run of train-teacher)."""
        return self.root / name

    @cached_property
    def scan_files(self) -> dict[str, list[str]]:
        """Names of the scan files by store."""
        return {
            name: sorted(str(path.relative_to(self.path(name))) for path in self.path(name).rglob("*.zarr.zip"))
            for name in ("exact", "train", *ENCODINGS)
        }

    def dump_words(self, store: Path, kind: str = "exact", data: Path | None = None, *more: str) -> list[str]:
        """Words of the dump command."""
        kept = EXACT_FULL if kind == "exact" else TRAIN
        return dump_words(data or self.path("data"), self.path("teacher.pt"), store, *kept, *more)

    def train_words(self, run: Path, store: Path | None = None, *more: str, resume: bool = False) -> list[str]:
        """Words of the train command."""
        options = ("--resume",) if resume else ()
        settings = (*QUICK, f"steps={STEPS}", *more)
        return words_of_train(self.path("data"), store or self.path("train"), run, *settings, options=options)

    def sweep_words(self, out: Path) -> list[str]:
        """Words of a sweep of one experiment with one seed, which trains what `straight` is."""
        words = ["sweep", "--data", self.path("data"), "--cache", self.path("train"), "--out", out, "--seeds", "0"]
        words += ["--experiments", experiment_file("full"), "--device", "cpu", "--threads", "1"]
        settings = (*experiment_overrides(STREET_GRID), *QUICK, f"steps={STEPS}")
        return [str(word) for word in words] + settings_words(*settings)

    def build(self) -> None:
        """Make everything, each part in a child of its own."""
        write_dataset(self.path("data"), SCANS, points=POINTS)
        weights = golden_weights("teacher_reduced")
        torch.save(weights, self.path("teacher.pt"))
        self._timed("dump", self.dump_words(self.path("exact")))
        self._timed("dump train", self.dump_words(self.path("train"), "train"))
        for name, (encoding, codec) in ENCODINGS.items():
            self._child(lambda name=name, e=encoding, c=codec: fill(FolderStorage(self.path(name)), e, c) and None)
        self._archives()
        half = ("steps=2",)
        self._timed("train half", self.train_words(self.path("half"), None, *half))
        self._timed("train", self.train_words(self.path("straight")))
        words = ["train-teacher", "--data", self.path("data"), "--run", self.path("teachers")]
        words += ["--config", TEACHER_CONFIG, "--device", "cpu", *settings_words(*TEACHER_SETTINGS)]
        self._timed("train teacher", words)
        for name in ("exact", "train", *ENCODINGS):
            self.digests[name] = self._child(lambda name=name: reading.digests(self.path(name))).value

    def _archives(self) -> None:
        """An archive, a merge and a conversion of the exact store, and what repair makes of a broken copy."""
        exact = str(self.path("exact"))
        words = ["merge", "--from", exact, "--archive", self.path("archive.zip")]
        self._timed("merge archive", words)
        self._timed("merge", ["merge", "--from", exact, "--to", self.path("merged")])
        self._timed("convert", convert_words(self.path("exact"), self.path("converted")))

    def _timed(self, name: str, words: list[Any]) -> None:
        start = time.monotonic()
        self._check(name, children.run_command(words, self.root / "made"))
        self.seconds[name] = time.monotonic() - start

    def _child(self, function: Any) -> Ended:
        ended = Child(function, self.root / "made").wait()
        self._check("a part of the workshop", ended)
        return ended

    def _check(self, name: str, ended: Ended) -> None:
        if ended.status or ended.hung:
            raise RuntimeError(f"{name} failed before anything was attacked:\n{ended.output}")


@dataclass
class Case:
    """One attack under way.

    Attributes:
        workshop: to copy from.
        folder: of this attack, empty at first, removed after it.
        seed: of the attack.
        generator: random numbers of this attack alone.
    """

    workshop: Workshop
    folder: Path
    seed: int
    generator: np.random.Generator

    @classmethod
    def of(cls, workshop: Workshop, kind: str, seed: int) -> "Case":
        """The attack of this kind and seed."""
        folder = workshop.root / "cases" / f"{kind.replace(' ', '_').replace(':', '')}_{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return cls(workshop, folder, seed, generator_of(kind, seed))

    def copy(self, name: str, to: str | None = None) -> Path:
        """A copy of something of the workshop, to spoil."""
        source, target = self.workshop.path(name), self.folder / (to or name)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        return target

    def command(self, *words: Any, limit: float = children.LIMIT_SECONDS) -> Ended:
        """Run a command."""
        return children.run_command(words, self.folder / "said", limit)

    def call(self, function: Any) -> Ended:
        """Run a function in a child; its own failure is no finding but an error of this program."""
        return children.run(function, self.folder / "said")

    def prepared(self, function: Any) -> Any:
        """What a function that prepares the attack returns.

        Raises:
            RuntimeError: it failed: nothing was attacked.
        """
        ended = self.call(function)
        if ended.status or ended.hung:
            raise RuntimeError(f"the attack could not be prepared:\n{ended.output}")
        return ended.value

    def choose(self, choices: list[Any]) -> Any:
        """One of several, by chance."""
        return choices[int(self.generator.integers(len(choices)))]


def convert_words(source: Path, target: Path) -> list[str]:
    """Words of a conversion that encodes every array anew."""
    small = settings_words(*(f"encoding.{part}=float16" for part in ("pillar_features", "voxel_features", "logits")))
    return ["convert", "--cache", str(source), "--to", str(target), *small]
