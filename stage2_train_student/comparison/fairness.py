"""Whether two experiments trained alike but for the teacher: the same views, scans, labels, steps and batches."""

from collections.abc import Iterable
from typing import Any

from common.scans.label_map import LabelMap
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.training_runs import TrainingRun
from stage2_train_student.training.seen_data import SeenViews, seen_views


def training_differences(experiment: Experiment, baseline: Experiment, label_map: LabelMap) -> list[str]:
    """In what the training of an experiment was not the baseline's, one phrase each; empty where it was the same.

    A baseline without a teacher has nothing to learn from scans without labels, so it may lack those. What an older
    version did not record is not compared, see `unrecorded`.
    """
    ours, theirs = conditions(experiment, label_map), conditions(baseline, label_map)
    if few_labels(experiment) and baseline.settings.targets == "none":
        # Whose labels are used is compared instead.
        left_out = ["training sequences", "training scans"]
    else:
        left_out = [] if few_labels(experiment) or few_labels(baseline) else ["scans with labels"]
    unequal = [
        f"{name}: {value}; the baseline's: {theirs[name]}"
        for name, value in ours.items()
        if name not in left_out and None not in (value, theirs[name]) and value != theirs[name]
    ]
    return [*view_differences(experiment, baseline), *unequal]


def few_labels(experiment: Experiment) -> bool:
    """Whether it trains on scans whose labels it does not use: what only a teacher makes possible, so a part of it."""
    return experiment.settings.labels is not None or experiment.settings.label_every > 1


def view_differences(experiment: Experiment, baseline: Experiment) -> list[str]:
    """How the views of two experiments differ, as far as that is known."""
    both = [views_of(experiment.runs), views_of(baseline.runs)]
    # Where one is not known: whichever views a store holds, they are a few of each scan, so never fresh ones.
    if both[0] == both[1] or (None in both and all(views is None or views.kind != "fresh" for views in both)):
        return []
    ours, theirs = ("those of a store" if views is None else views.describe() for views in both)
    setting = None if both[0] is None else both[0].as_augmentation()
    hint = "" if setting is None else f" (a baseline that sees the same has {setting})"
    return [f"views: {ours}; the baseline's: {theirs}{hint}"]


def conditions(experiment: Experiment, label_map: LabelMap) -> dict[str, Any]:
    """What must be the same besides the views; None where it is not known, or need not be the same."""
    settings = experiment.settings
    sequences = label_map.sequences(settings.train)
    labels = sequences if settings.labels is None else label_map.sequences(settings.labels)
    seen = [run.seen for run in experiment.runs if run.seen is not None]
    scans = {one.scans_in_words for one in seen}
    # Older versions noted which scans a run saw, but not whose labels it used.
    labelled = {one.labelled_in_words for one in seen} - {None} if few_labels(experiment) else scans
    steps = {run.last_step for run in experiment.runs if run.steps}
    return {
        "training sequences": listed(sequences),
        "sequences with labels": listed(labels),
        "labels used": f"one in {settings.label_every}" if settings.label_every > 1 else "all",
        "scans with labels": listed(labelled),
        "mixed scans": str(settings.mix or "none"),
        "training scans": listed(scans),
        # Where validations end the training, its length is what the method made of it.
        "steps": listed(steps) if settings.early_stopping is None else None,
        "early stopping": settings.early_stopping or "none",
        "scans in a batch": settings.batch_size,
        "batches in a step": settings.optimiser.accumulate,
    }


def listed(values: Iterable[Any]) -> str | None:
    """Values in words, sorted; None for none."""
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in sorted(values)) or None


def views_of(runs: Iterable[TrainingRun]) -> SeenViews | None:
    """The views that the runs of an experiment saw; None where they read a store and an older version kept no note."""
    return next((views for run in runs if (views := views_of_run(run)) is not None), None)


def views_of_run(run: TrainingRun) -> SeenViews | None:
    """The views that a run saw, None where that is not known."""
    return seen_views(run.settings, None) if run.seen is None else run.seen.views


def unrecorded(experiments: Iterable[Experiment]) -> list[TrainingRun]:
    """Runs that read a store and did not note what they saw, as older versions did not."""
    return [run for experiment in experiments for run in experiment.runs if views_of_run(run) is None]
