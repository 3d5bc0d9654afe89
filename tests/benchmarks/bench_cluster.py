"""Dumping on a cluster of several Ray nodes on this machine: what a killed node and a slow node cost.

    python -m tests.benchmarks.bench_cluster [--json]

A teacher that sleeps stands for one on a GPU, so that two cores suffice. Times run from the first file of a dump to its
last. Perfect sharing: every node dumps at its own speed, and all end at the same moment.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import REPOSITORY, STREET_GRID, dump_words
from tests.shared.small_cluster import SLEEPING_TEACHER, SLOWNESS, add_node, kill_node, small_cluster
from tests.shared.small_stores import scan_files

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SCANS = 72
SECONDS = 0.3
"""Of the teacher for a scan."""

SLOWER = (1.0, 1.0, 4.0)
"""How many times longer the teacher takes on each node."""


def started(folder: Path, cache: str, *options: str, slowness: float = 1.0, teacher: str = "teacher") -> Any:
    """A dump into a store of that name, as a process."""
    overrides = (f"teacher={SLEEPING_TEACHER}", "layers=[height]", "splits=[train]")
    words = dump_words(folder / "dataset", folder / f"{teacher}.txt", folder / cache, STREET_GRID, *overrides)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "polar_distill", *words, *options],
            cwd=REPOSITORY,
            env=os.environ | {SLOWNESS: str(slowness)},
            stdout=log,
            stderr=log,
        )


def finished(folder: Path, *processes: Any) -> None:
    """Wait for processes that must end well."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise click.ClickException(f"a dump failed: {(folder / 'log').read_text()}")


def seconds(store: Path) -> float:
    """From the first to the last scan file."""
    times = [path.stat().st_mtime for path in store.rglob("*.zarr.zip")]
    return max(times) - min(times)


def dump_with_a_kill(folder: Path, cluster: "Cluster") -> dict[str, Any]:
    """Kill a node once a third is dumped, and compare with what one process dumps."""
    finished(folder, started(folder, "alone", teacher="quick"))
    process = started(folder, "killed", "--ray", cluster.address)
    while len(list((folder / "killed").rglob("*.zarr.zip"))) < SCANS // 3 and process.poll() is None:
        time.sleep(0.05)
    kill_node(cluster, next(iter(cluster.worker_nodes)))
    finished(folder, process)
    alone, dumped = scan_files(folder / "alone"), scan_files(folder / "killed")
    return {"killed": 1, "scans_lost": len(alone.keys() - dumped.keys()), "identical": alone == dumped}


def dump_with_a_straggler(folder: Path, cluster: "Cluster") -> dict[str, float]:
    """Dump on nodes of which one is slower, and in shards of which one is."""
    for node in list(cluster.worker_nodes):
        kill_node(cluster, node)
    for slowness in SLOWER:
        add_node(cluster, slowness)
    finished(folder, started(folder, "shared", "--ray", cluster.address))
    shards = enumerate(SLOWER)
    finished(
        folder,
        *[started(folder, "shards", "--shard", f"{index}/{len(SLOWER)}", slowness=slow) for index, slow in shards],
    )
    perfect = SCANS * SECONDS / sum(1 / slowness for slowness in SLOWER)
    shared, static = seconds(folder / "shared"), seconds(folder / "shards")
    return {
        "perfect_s": round(perfect, 2),
        "shared_s": round(shared, 2),
        "shards_s": round(static, 2),
        "straggler_ratio": round(shared / perfect, 2),
        "shards_ratio": round(static / perfect, 2),
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the numbers alone, as JSON in one line.")
def main(as_json: bool) -> None:
    """Print what a killed node and a slow node cost a dump."""
    with TemporaryDirectory() as name, small_cluster(len(SLOWER)) as cluster:
        folder = Path(name)
        write_dataset(folder / "dataset", {"00": SCANS}, points=300)
        (folder / "teacher.txt").write_text(str(SECONDS))
        (folder / "quick.txt").write_text("0")
        found = {"nodes": len(SLOWER)} | dump_with_a_kill(folder, cluster) | dump_with_a_straggler(folder, cluster)
    if not as_json:
        width = max(map(len, found))
        for key, value in found.items():
            click.echo(f"{key:{width}}  {value}")
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
