"""Attack the project's files and commands, and count what was noticed.

    python -m tests.benchmarks.bench_faults [--json] [--minutes 5] [--only KIND [--seed N]]

Kills of commands, damaged files, forged files with valid checksums, bad scans: some 1,700 attacks, about 5 minutes on
two cores. On a slower machine fewer of each kind are made in that time. Prints a table by what was attacked, and as the
last line its sum as one JSON object. Exits with status 1 unless `silent` and `tracebacks` are 0; then it says how each
of those attacks can be repeated alone.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from tests.benchmarks.faults import (
    bad_scans,
    damaged_runs,
    damaged_stores,
    forged_checkpoints,
    forged_scan_files,
    forged_stores,
    kills,
)
from tests.benchmarks.faults.children import import_everything
from tests.benchmarks.faults.verdicts import Kind, Verdict, summary, table
from tests.benchmarks.faults.workshop import Case, Workshop

MODULES = (kills, damaged_stores, damaged_runs, forged_scan_files, forged_stores, forged_checkpoints, bad_scans)
KINDS: dict[str, Kind] = {kind.name: kind for module in MODULES for kind in module.KINDS}

Attack = tuple[str, int]
Results = dict[Attack, Verdict]


def attacks_of(only: Sequence[str], seed: int | None, share: float) -> list[Attack]:
    """The attacks asked for: kinds whose name starts with one of `only`, one seed or all, or a share of them."""
    chosen = [kind for kind in KINDS.values() if not only or kind.name.startswith(tuple(only))]
    if not chosen:
        raise click.UsageError("no such kind; there are:\n  " + "\n  ".join(KINDS))
    seeds = {kind.name: [seed] if seed is not None else range(max(1, round(share * kind.count))) for kind in chosen}
    # Kinds take turns, so that whatever time there is, it goes to all of them alike.
    placed = [
        ((place + 0.5) / len(numbers), name, number)
        for name, numbers in seeds.items()
        for place, number in enumerate(numbers)
    ]
    return [(name, number) for _, name, number in sorted(placed)]


def attack(workshop: Workshop, name: str, seed: int, keep: bool) -> Verdict:
    """One attack in a folder of its own."""
    case = Case.of(workshop, name, seed)
    try:
        return KINDS[name].attack(case)
    except Exception:
        return Verdict("silent", detail=f"the attack itself failed: {traceback.format_exc()}")
    finally:
        if not keep:
            shutil.rmtree(case.folder, ignore_errors=True)


def attack_all(workshop: Workshop, attacks: list[Attack], jobs: int, keep: bool, until: float) -> Results:
    """Attack with several processes, each every so-many-th attack; this one waits for their verdicts.

    Nothing is begun after `until`, a reading of the monotonic clock.
    """
    files = [workshop.root / f"verdicts_{number}.jsonl" for number in range(jobs)]
    workers, died = [], False
    for number, file in enumerate(files):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                write_verdicts(workshop, attacks[number::jobs], file, keep, until)
                status = 0
            finally:
                os._exit(status)
        workers.append(pid)
    for pid in workers:
        died |= os.waitpid(pid, 0)[1] != 0
    results = {}
    for line in "".join(file.read_text() for file in files).splitlines():
        name, seed, verdict = json.loads(line)
        results[(name, seed)] = Verdict(**verdict)
    if died:
        raise click.ClickException("an attacking process died itself")
    return {item: results[item] for item in attacks if item in results}


def write_verdicts(workshop: Workshop, attacks: list[Attack], file: Path, keep: bool, until: float) -> None:
    """The verdicts of some attacks, one JSON line each."""
    with file.open("w") as lines:
        for name, seed in attacks:
            start = time.monotonic()
            if start > until:
                break
            verdict = attack(workshop, name, seed, keep)
            lines.write(json.dumps([name, seed, vars(verdict)]) + "\n")
            lines.flush()
            if os.environ.get("FAULTS_SECONDS"):
                print(f"{time.monotonic() - start:6.2f} s  {name} {seed}", file=sys.stderr, flush=True)


def failures(results: Results) -> list[str]:
    """What went wrong and how to see it again."""
    return [
        f"{verdict.outcome}: {verdict.detail}\n    repeat: --only '{name}' --seed {seed}"
        for (name, seed), verdict in results.items()
        if verdict.outcome in ("silent", "traceback")
    ]


def by_row(results: Results) -> dict[str, list[Verdict]]:
    """Verdicts by row of the table."""
    rows: dict[str, list[Verdict]] = {}
    for (name, _), verdict in results.items():
        rows.setdefault(KINDS[name].row, []).append(verdict)
    return rows


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object alone.")
@click.option("--only", multiple=True, metavar="KIND", help="Kinds that start so; repeatable.")
@click.option("--seed", type=int, help="One attack of each kind instead of all.")
@click.option("--share", default=1.0, show_default=True, help="Share of each kind's attacks.")
@click.option("--minutes", default=5.0, show_default=True, help="After which no further attack is begun.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Attacks at a time.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to leave every file in.")
def main(
    as_json: bool, only: tuple[str, ...], seed: int | None, share: float, minutes: float, jobs: int, keep: Path | None
) -> None:
    """Attack, count, and exit with status 1 if anything was wrong without a word."""
    torch.set_num_threads(1)
    import_everything()
    attacks = attacks_of(only, seed, share)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        workshop = Workshop(keep or Path(temporary))
        workshop.root.mkdir(parents=True, exist_ok=True)
        workshop.build()
        results = attack_all(workshop, attacks, jobs, keep is not None, start + 60 * minutes)
    rows, wrong = by_row(results), failures(results)
    if not as_json:
        for (name, number), verdict in results.items() if len(attacks) <= len(KINDS) else ():
            click.echo(f"{verdict.outcome:10} {name} {number}: {verdict.detail}")
        seconds = time.monotonic() - start
        click.echo(f"{table(rows)}\n\n{len(results)} of {len(attacks)} attacks, {seconds:.0f} s")
    for line in wrong:
        click.echo(line, err=as_json)
    click.echo(summary(rows))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
