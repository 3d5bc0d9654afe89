"""What is compared: one score for each run, its mean and spread over seeds, and differences to the baseline."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from common.errors import DataError
from common.label_map import LabelMap
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.training_runs import Score, TrainingRun

Source = Literal["evaluation", "validation"]


class Sample(NamedTuple):
    """Values of one quantity over the seeds of an experiment; a seed without a value is left out."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Sample":
        """Leave out what is None."""
        return cls(tuple(float(value) for value in values if value is not None))

    @property
    def mean(self) -> float | None:
        """None without a value."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, with n - 1 in the denominator; None for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


class Difference(NamedTuple):
    """Difference of two means and its standard error, None where either has fewer than two values."""

    value: float
    error: float | None

    @property
    def clear(self) -> bool:
        """Whether it is larger than twice its standard error."""
        return self.error is not None and abs(self.value) > 2 * self.error


def difference(sample: Sample, baseline: Sample) -> Difference | None:
    """Difference of the means; None where one has no value.

    The standard error is sqrt(s1^2 / n1 + s2^2 / n2), which does not assume equal spreads (Welch, Biometrika 1947).
    """
    if sample.mean is None or baseline.mean is None:
        return None
    error = None
    if sample.spread is not None and baseline.spread is not None:
        error = math.sqrt(sample.spread**2 / len(sample.values) + baseline.spread**2 / len(baseline.values))
    return Difference(sample.mean - baseline.mean, error)


@dataclass(frozen=True)
class Result:
    """What is known about an experiment.

    Attributes:
        experiment: which one.
        is_baseline: whether the others are measured against it.
        miou: in 0..1.
        gain: mIoU minus the baseline's; None for the baseline itself, or where there is none.
        iou: by class name, in 0..1.
        iou_gain: the same as differences to the baseline; None where one has no value.
        miou_by_distance: by the start of each distance range in metres.
        agreement: share of points where student and teacher say the same.
        seconds_per_step: median over the steps of each run.
        training_seconds: sum of the steps' seconds.
        peak_memory: bytes.
    """

    experiment: Experiment
    is_baseline: bool
    miou: Sample
    gain: Difference | None
    iou: dict[str, Sample]
    iou_gain: dict[str, Difference | None]
    miou_by_distance: dict[float, Sample]
    agreement: Sample
    seconds_per_step: Sample
    training_seconds: Sample
    peak_memory: Sample


def choose_source(experiments: list[Experiment], wanted: Source | None, label_map: LabelMap) -> Source:
    """Where scores come from: one source for all runs, so that like is compared with like.

    Args:
        experiments: to compare.
        wanted: a source that was asked for; None takes evaluations where every run has one, else best validations.
        label_map: says which sequences a split is.

    Raises:
        DataError: evaluations were asked for and a run has none; one is of another student, and nobody asked for
            validations; runs were scored on different scans or in different ways.
    """
    runs = [run for experiment in experiments for run in experiment.runs]
    problem = next((run.evaluation_problem for run in runs if run.evaluation_problem), None)
    if problem is not None and wanted != "validation":
        raise DataError(f"{problem.message} Or compare validations (--scores validation).")
    lacking = not_evaluated(experiments)
    if wanted == "evaluation" and lacking:
        raise DataError(
            f"{len(lacking)} of {len(runs)} runs have no evaluation, the first is {lacking[0].folder}. "
            f"Run evaluate --run {lacking[0].folder}, or compare their validations (--scores validation)."
        )
    source: Source = wanted or ("validation" if lacking else "evaluation")
    protocols = [
        evaluation_protocol(run) if source == "evaluation" else validation_protocol(run, label_map) for run in runs
    ]
    first = protocols[0]
    for run, other in zip(runs[1:], protocols[1:], strict=True):
        if other != first:
            unequal = ", ".join(
                f"{name} {first[name]} and {other[name]}" for name in first if first[name] != other[name]
            )
            raise DataError(
                f"{runs[0].folder} and {run.folder} were not scored on the same points: {unequal}. Evaluate all "
                "runs with the same --data, --split and --views, or leave one of them out."
            )
    return source


def not_evaluated(experiments: list[Experiment]) -> list[TrainingRun]:
    """Runs without an evaluation."""
    return [run for experiment in experiments for run in experiment.runs if run.evaluated() is None]


def evaluation_protocol(run: TrainingRun) -> dict[str, Any]:
    """What must agree for evaluations to be comparable; `run` has one."""
    return report_protocol(run.evaluation or {})


def report_protocol(numbers: dict[str, Any]) -> dict[str, Any]:
    """The same of a report of `evaluate`."""
    # Not the names of the splits: `val` and `08` are the same scans.
    names = ("scans", "points", "views")
    return {name: numbers.get(name) for name in names} | {"scans' hash": str(numbers.get("scans_sha256"))[:12]}


def validation_protocol(run: TrainingRun, label_map: LabelMap) -> dict[str, Any]:
    """What must agree for validations to be comparable."""
    return {"validate_on": sorted(label_map.sequences(run.settings.validate_on))}


def score_of(run: TrainingRun, source: Source) -> Score | None:
    """A run's score from the chosen source."""
    return run.evaluated() if source == "evaluation" else run.best_validation()


def results(
    experiments: list[Experiment], baseline: Experiment | None, source: Source, label_map: LabelMap
) -> list[Result]:
    """Everything in numbers, the baseline first."""
    reference = None if baseline is None else one_result(baseline, None, source, label_map, is_baseline=True)
    others = [
        one_result(experiment, reference, source, label_map) for experiment in experiments if experiment is not baseline
    ]
    return others if reference is None else [reference, *others]


def one_result(
    experiment: Experiment, baseline: Result | None, source: Source, label_map: LabelMap, is_baseline: bool = False
) -> Result:
    """The numbers of one experiment; `baseline` is None for the baseline itself, or where there is none."""
    runs = experiment.runs
    scores = [score for score in (score_of(run, source) for run in runs) if score is not None]
    # Agreement has one source only, whatever the scores come from.
    evaluated = [score for score in (run.evaluated() for run in runs) if score is not None]
    miou = Sample.of(score.miou for score in scores)
    iou = {name: Sample.of(score.iou.get(name) for score in scores) for name in label_map.names[1:]}
    starts = sorted({start for score in scores for start in score.miou_by_distance})
    return Result(
        experiment=experiment,
        is_baseline=is_baseline,
        miou=miou,
        gain=None if baseline is None else difference(miou, baseline.miou),
        iou=iou,
        iou_gain={
            name: None if baseline is None else difference(sample, baseline.iou[name]) for name, sample in iou.items()
        },
        miou_by_distance={start: Sample.of(score.miou_by_distance.get(start) for score in scores) for start in starts},
        agreement=Sample.of(score.agreement for score in evaluated),
        seconds_per_step=Sample.of(run.seconds_per_step() for run in runs),
        training_seconds=Sample.of(run.step_seconds() for run in runs),
        peak_memory=Sample.of(run.peak_memory() for run in runs),
    )


class Verdict(NamedTuple):
    """The answer in short.

    Attributes:
        sentence: whether distillation helped, and how sure that is.
        best: the experiment of the largest gain.
        tone: `better`, `worse` or `unclear`.
    """

    sentence: str
    best: Result
    tone: Literal["better", "worse", "unclear"]


def verdict(found: list[Result]) -> Verdict | None:
    """Whether the best experiment beats the baseline; None where nothing can be said."""
    compared = [result for result in found if result.gain is not None]
    if not compared:
        return None
    best = max(compared, key=lambda result: result.gain.value if result.gain else -math.inf)
    gain = best.gain
    assert gain is not None
    name, points = best.experiment.name, f"{abs(100 * gain.value):.1f} points of mIoU"
    who = f"{name}, the best of {len(compared)}," if len(compared) > 1 else name
    way = "above" if gain.value >= 0 else "below"
    if gain.error is None:
        chance = "but without several seeds on both sides nobody can say how much of that is chance"
        return Verdict(f"Not known: {who} is {points} {way} the baseline, {chance}.", best, "unclear")
    if not gain.clear:
        chance = f"which is within twice the standard error of {100 * gain.error:.1f}"
        return Verdict(f"No clear difference: {who} is {points} {way} the baseline, {chance}.", best, "unclear")
    error = f"more than twice the standard error of {100 * gain.error:.1f}"
    if gain.value > 0:
        return Verdict(
            f"Yes: {who} is {points} above the baseline, {error}{at_what_cost(best, found)}.", best, "better"
        )
    return Verdict(f"No: {who} is {points} below the baseline, {error}.", best, "worse")


def at_what_cost(result: Result, found: list[Result]) -> str:
    """The time of a step as a multiple of the baseline's, in words; empty where it is not known."""
    baseline = next((other.seconds_per_step.mean for other in found if other.is_baseline), None)
    if not baseline or not result.seconds_per_step.mean:
        return ""
    return f", at {result.seconds_per_step.mean / baseline:.2f} times the time of a step"
