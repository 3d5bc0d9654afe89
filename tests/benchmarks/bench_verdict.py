"""How often the comparison page finds a difference where there is none.

    python -m tests.benchmarks.bench_verdict [--json]

Each simulated comparison has a baseline and four experiments whose mIoU is drawn without any effect, and goes the way
of the page: scores of runs, tested differences, the sentence. Counted is every verdict that is clear, for better or
worse. The numbers under the seeds' names are those of the worst of the situations below.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.base.config import load_settings
from common.scans.label_map import LabelMap
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.results import results
from stage2_train_student.comparison.training_runs import TrainingRun
from stage2_train_student.comparison.verdict import verdict
from stage2_train_student.settings import ExperimentSettings

SEEDS = (2, 3, 5)
EXPERIMENTS = 5
"""The baseline and four others."""

MIOU, SPREAD = 0.35, 0.018
"""Mean and standard deviation over seeds, as the proof's."""

LABEL_MAP = LabelMap.model_validate(
    {
        "name": "made up",
        "classes": [{"name": name, "raw_id": raw, "colour": (0, 0, 0)} for raw, name in enumerate(("none", "thing"))],
        "learning_map": {0: 0, 1: 1},
        "content": {0: 0.5, 1: 0.5},
        "splits": {"train": ["00"], "val": ["08"], "test": []},
    }
)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def alike(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """mIoU float [experiments, seeds], independent and with equal spreads."""
    return MIOU + SPREAD * generator.standard_normal((EXPERIMENTS, seeds))


def by_seed(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """The same where most of the spread is that of seeds, shared by all experiments."""
    shared = generator.standard_normal((1, seeds))
    own = generator.standard_normal((EXPERIMENTS, seeds))
    return MIOU + SPREAD * (0.9 * shared + 0.44 * own)


def noisy_experiments(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """The same with spreads from a third to three times the baseline's."""
    spreads = SPREAD * np.array([1.0, 1 / 3, 1.0, 2.0, 3.0])[:, None]
    return MIOU + spreads * generator.standard_normal((EXPERIMENTS, seeds))


SITUATIONS: dict[str, tuple[Draw, int]] = {
    "same seeds, equal spreads": (alike, 0),
    "same seeds, which matter": (by_seed, 0),
    "same seeds, unequal spreads": (noisy_experiments, 0),
    "other seeds than the baseline, unequal spreads": (noisy_experiments, 100),
}
"""How mIoU is drawn, and what is added to the numbers of the experiments' seeds."""


def false_positives(seeds: int, simulations: int) -> dict[str, float]:
    """Share of comparisons without an effect whose verdict is clear, by situation."""
    rates = {}
    for number, (name, (draw, shift)) in enumerate(SITUATIONS.items()):
        generator = np.random.default_rng([seeds, number])
        made = experiments_of(seeds, shift)
        rates[name] = sum(clear(made, draw(generator, seeds)) for _ in range(simulations)) / simulations
    return rates


def clear(made: list[Experiment], mious: np.ndarray) -> bool:
    """Whether the page's verdict on mIoU float [experiments, seeds] says Yes or No."""
    scored = [
        replace(one, runs=tuple(scored_run(run, miou) for run, miou in zip(one.runs, row, strict=True)))
        for one, row in zip(made, mious.tolist(), strict=True)
    ]
    answer = verdict(results(scored, scored[0], "evaluation", LABEL_MAP))
    return answer is not None and answer.tone != "unclear"


def experiments_of(seeds: int, shift: int) -> list[Experiment]:
    """The experiments, not yet scored; the seeds of all but the baseline are shifted."""
    settings = load_settings(ExperimentSettings, Path("configs/experiments/baseline.yaml"))

    def run(number: int, seed: int) -> TrainingRun:
        with_seed = settings.model_copy(update={"seed": seed + (shift if number else 0)})
        return TrainingRun(Path(f"{number}/{seed}"), with_seed, {}, [], [], [], None)

    names = ["baseline", *(f"experiment {number}" for number in range(1, EXPERIMENTS))]
    return [Experiment(name, tuple(run(number, seed) for seed in range(seeds))) for number, name in enumerate(names)]


def scored_run(run: TrainingRun, miou: float) -> TrainingRun:
    """A run with an evaluation."""
    return replace(run, evaluation={"miou": miou, "iou": {"thing": miou}})


@click.command()
@click.option("--simulations", type=click.IntRange(1), default=2000, show_default=True, help="Of each situation.")
@click.option("--json", "only_json", is_flag=True, help="Print the JSON line only.")
def main(simulations: int, only_json: bool) -> None:
    """Print the share of clear verdicts without an effect; the last line is one JSON object."""
    numbers: dict[str, Any] = {"simulations": simulations}
    for seeds in SEEDS:
        rates = false_positives(seeds, simulations)
        numbers[f"false_positive_{seeds}"] = max(rates.values())
        if not only_json:
            for name, rate in rates.items():
                click.echo(
                    f"{seeds} seeds, {name}: {100 * rate:.2f} % of {simulations:,} comparisons without an effect"
                )
    click.echo(json.dumps(numbers))


if __name__ == "__main__":
    main()
