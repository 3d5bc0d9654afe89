"""What is compared: one score for each run, its mean and spread over seeds, and tested differences to the baseline."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from common.base.errors import DataError
from common.scans.label_map import LabelMap
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.fairness import training_differences
from stage2_train_student.comparison.statistics import Difference, Sample, difference
from stage2_train_student.comparison.training_runs import TrainingRun

Source = Literal["evaluation", "validation"]


@dataclass(frozen=True)
class Result:
    """What is known about an experiment.

    Shares (mIoU, IoU, agreement) are in 0..1, memory in bytes; of a run, `seconds_per_step` is the median and
    `training_seconds` the sum over its steps. Gains are differences to the baseline, None for the baseline itself or
    where one has no value. Distances are by the start of each range in metres.

    Attributes:
        unlike_baseline: in what the student's training differs from the baseline's beside the teacher, in words; where
            there is anything, the gain is not tested.
    """

    experiment: Experiment
    is_baseline: bool
    miou: Sample
    gain: Difference | None
    unlike_baseline: list[str]
    iou: dict[str, Sample]
    iou_gain: dict[str, Difference | None]
    miou_by_distance: dict[float, Sample]
    agreement: Sample
    seconds_per_step: Sample
    training_seconds: Sample
    peak_memory: Sample


def choose_source(experiments: list[Experiment], wanted: Source | None, label_map: LabelMap) -> Source:
    """Where scores come from: one source for all runs, so that like is compared with like.

    That which was asked for; else evaluations where every run has one, best validations elsewhere.

    Raises:
        DataError: evaluations were asked for and a run has none; one is of another student, and nobody asked for
            validations; runs were scored on different scans or in different ways.
    """
    runs = [run for experiment in experiments for run in experiment.runs]
    problem = next((run.evaluation_problem for run in runs if run.evaluation_problem), None)
    if problem is not None and wanted != "validation":
        raise DataError(f"{problem.message} Or compare validations (--scores validation).")
    lacking = [run for run in runs if run.evaluated() is None]
    if wanted == "evaluation" and lacking:
        raise DataError(
            f"{len(lacking)} of {len(runs)} runs have no evaluation, the first is {lacking[0].folder}. "
            f"Run evaluate --run {lacking[0].folder}, or compare their validations (--scores validation)."
        )
    source: Source = wanted or ("validation" if lacking else "evaluation")
    first = protocol(runs[0], source, label_map)
    for run in runs[1:]:
        unequal = differences(first, protocol(run, source, label_map))
        if unequal:
            raise DataError(
                f"{runs[0].folder} and {run.folder} were not scored on the same points: {unequal}. Evaluate all "
                "runs with the same --data, --split and --views, or leave one of them out."
            )
    return source


def protocol(run: TrainingRun, source: Source, label_map: LabelMap) -> dict[str, Any]:
    """What must agree for scores to be comparable."""
    if source == "validation":
        return {"validate_on": sorted(label_map.sequences(run.settings.validate_on))}
    return report_protocol(run.evaluation or {})


def report_protocol(numbers: dict[str, Any]) -> dict[str, Any]:
    """What must agree in two reports of `evaluate` for their scores to be comparable."""
    # Not the names of the splits: `val` and `08` are the same scans.
    names = ("scans", "points", "views")
    return {name: numbers.get(name) for name in names} | {"scans' hash": str(numbers.get("scans_sha256"))[:12]}


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What two protocols do not share, in words; empty where they agree."""
    return ", ".join(f"{name} {one[name]} and {other[name]}" for name in one if one[name] != other[name])


def results(
    experiments: list[Experiment], baseline: Experiment | None, source: Source, label_map: LabelMap
) -> list[Result]:
    """Everything in numbers, the baseline first; the gains are tested as so many comparisons with it."""
    if baseline is None:
        return [one_result(experiment, None, source, label_map) for experiment in experiments]
    reference = one_result(baseline, None, source, label_map)
    others = [one_result(one, reference, source, label_map) for one in experiments if one is not baseline]
    count = sum(map(testable, others))
    return [replace(reference, is_baseline=True), *(tested(one, count) if testable(one) else one for one in others)]


def testable(result: Result) -> bool:
    """Whether chance can be told from effect."""
    return result.gain is not None and result.gain.error is not None and not result.unlike_baseline


def tested(result: Result, comparisons: int) -> Result:
    """The same with a gain that is one of so many comparisons with the baseline."""
    assert result.gain is not None
    return replace(result, gain=result.gain._replace(comparisons=comparisons))


def one_result(experiment: Experiment, baseline: Result | None, source: Source, label_map: LabelMap) -> Result:
    """The numbers of one experiment; `baseline` is None for the baseline itself, or where there is none."""
    runs = experiment.runs
    # Agreement has one source only, whatever the scores come from.
    evaluated = [run.evaluated() for run in runs]
    chosen = evaluated if source == "evaluation" else [run.best_validation() for run in runs]
    scores = {seed: score for seed, score in zip(experiment.seeds, chosen, strict=True) if score is not None}
    miou = Sample.by_seed({seed: score["miou"] for seed, score in scores.items()})
    iou = {
        name: Sample.by_seed({seed: score["iou"].get(name) for seed, score in scores.items()})
        for name in label_map.names[1:]
    }
    by_distance = [{part["from"]: part["miou"] for part in score.get("ranges", [])} for score in scores.values()]
    starts = sorted({start for ranges in by_distance for start in ranges})
    return Result(
        experiment=experiment,
        is_baseline=False,
        miou=miou,
        gain=None if baseline is None else difference(miou, baseline.miou),
        unlike_baseline=[] if baseline is None else training_differences(experiment, baseline.experiment, label_map),
        iou=iou,
        iou_gain={name: difference(one, baseline.iou[name]) if baseline else None for name, one in iou.items()},
        miou_by_distance={start: Sample.of(ranges.get(start) for ranges in by_distance) for start in starts},
        agreement=Sample.of(score.get("agreement", {}).get("share") for score in evaluated if score is not None),
        seconds_per_step=Sample.of(run.seconds_per_step() for run in runs),
        training_seconds=Sample.of(sum(record["seconds"] for record in run.steps) for run in runs),
        peak_memory=Sample.of(run.peak_memory() for run in runs),
    )
