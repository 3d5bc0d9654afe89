"""What a reader must know to judge the numbers of a comparison."""

from common.scans.label_map import LabelMap
from stage2_train_student.comparison.fairness import unrecorded
from stage2_train_student.comparison.results import Result, Source, not_evaluated
from stage2_train_student.comparison.training_runs import TrainingRun


def notes(found: list[Result], source: Source, label_map: LabelMap) -> list[str]:
    """A sentence or two each."""
    experiments = [result.experiment for result in found]
    runs = [run for experiment in experiments for run in experiment.runs]
    lacking = not_evaluated(experiments)
    lines = about_runs("Not finished", [run for run in runs if not run.finished])
    if source == "evaluation":
        lines.append("mIoU and IoU are those of evaluate, kept in each run's evaluation.json.")
    else:
        lines.append(
            "mIoU and IoU are those of each run's best validation, the one that chose the student; as the best of "
            "several it is a little optimistic."
        )
        if len(lacking) < len(runs):
            lines += about_runs("Not evaluated, so that evaluations are not shown", lacking)
    outdated = [run for run in runs if run.evaluation_problem is not None]
    lines += about_runs("Evaluations that cannot be used are left out", outdated)
    chosen_on = sorted({name for run in runs for name in run.chosen_on(label_map)})
    if source == "evaluation" and chosen_on:
        lines.append(
            f"Students were chosen by their mIoU on {', '.join(chosen_on)}, and are scored there too: as the best of "
            "several validations it is a little optimistic."
        )
    lines += [*how_tested(found), *how_alike(found)]
    if len({str([run.environment.get(key) for key in ("devices", "threads", "platform")]) for run in runs}) > 1:
        lines.append(
            "The runs were made on different machines or with different numbers of threads: their times cannot "
            "be compared."
        )
    if any(experiment.settings.targets == "cache" for experiment in experiments):
        lines.append(
            "Times are those of training; dumping the teacher's targets, once for all experiments, is not counted."
        )
    return lines


def about_runs(what: str, runs: list[TrainingRun]) -> list[str]:
    """A line that names some runs, none where there are none."""
    return [f"{what}: {', '.join(str(run.folder) for run in runs)}."] if runs else []


def how_tested(found: list[Result]) -> list[str]:
    """What the numbers behind the verdict are."""
    lines = ["± of a mean is the standard deviation over seeds (n - 1); ± of a difference its standard error."]
    paired = [result.gain.paired for result in found if result.gain is not None and result.gain.comparisons]
    if paired:
        mixed = "by seed where the seeds are the same"
        how = "by seed" if all(paired) else mixed if any(paired) else "of means"
        lines.append(
            f"Tested with Student's t on differences {how}, corrected for {len(paired)} comparisons with the baseline "
            "(Bonferroni): without any effect, a difference counts as clear in at most 5 % of pages like this."
        )
    return lines


def how_alike(found: list[Result]) -> list[str]:
    """Which experiments get no verdict since they trained otherwise, and what could not be checked."""
    lines = [
        f"No verdict on {result.experiment.name}, which did not train as the baseline did. "
        f"{'. '.join(result.unlike_baseline)}. Train a baseline that does, and compare with that (--baseline)."
        for result in found
        if result.unlike_baseline
    ]
    unknown = unrecorded(result.experiment for result in found)
    if unknown and any(result.is_baseline for result in found):
        lines.append(
            f"Whether the baseline saw the same views could not be checked for {len(unknown)} runs of an older "
            f"version, which did not note those of its store, the first is {unknown[0].folder}."
        )
    return lines
