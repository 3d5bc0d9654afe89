"""The commands `export` and `latency`."""

import platform
from pathlib import Path

import click
import torch

from common.base.command_options import data_option, path_type
from common.base.devices import CPU
from common.base.errors import DataError, SettingsError
from common.base.files import check_replaceable, write_json
from common.base.text import aligned_table, count_text, size_text
from common.scans.dataset import Dataset, evenly, open_dataset
from stage2_train_student.shipping.card import LATENCY_FILE, LatencyNotes
from stage2_train_student.shipping.engines import Comparison, compare, onnx_engines, torch_engines
from stage2_train_student.shipping.export import export as write_export
from stage2_train_student.shipping.parameters import check_same_student, parameters_of
from stage2_train_student.training.runs import load_student, run_settings, run_weights

run_argument = click.argument("run_folder", metavar="RUN", type=path_type)
scans_option = click.option(
    "--scans", type=click.IntRange(min=1), default=4, help="Scans to measure on, evenly spread over the data."
)


@click.command()
@run_argument
@click.option("--to", type=path_type, required=True, help="Folder to make: whole, or not at all.")
@click.option("--licence", default="not said", help="Of the weights, for the model card.")
@click.option("--onnx/--no-onnx", default=True, help="Write ONNX graphs (of polarnet alone).")
@click.option("--int8", is_flag=True, help="Write eight-bit graphs as well, and what they cost; needs --calibrate.")
@click.option("--calibrate", type=path_type, help="Folder of the dataset, for --int8.")
@scans_option
def export(
    run_folder: Path, to: Path, licence: str, onnx: bool, int8: bool, calibrate: Path | None, scans: int
) -> None:
    """Write a run's student as one ships it: weights, settings, ONNX, parameters, a program and a model card.

    The folder is a run to every other command. --int8 takes ranges of values from some scans of --calibrate, and
    prints what eight bits change and win on others; the card holds that table too.

    \b
    Examples:
      polar-distill export runs/full --to full_student --licence CC-BY-NC-4.0
      polar-distill export runs/full --to full_student --int8 --calibrate dataset
      python full_student/run_exported.py scan.bin labels.npy
    """
    if int8 != (calibrate is not None) or (int8 and not onnx):
        raise SettingsError("--int8 and --calibrate DATA go together, and need ONNX graphs")
    calibration = None if calibrate is None else open_dataset(calibrate, run_settings(run_folder).dataset)
    if onnx:
        click.echo("writing ONNX graphs, which takes some ten seconds", err=True)
    comparison = write_export(run_folder, to, licence, onnx, calibration, scans)
    if comparison is not None:
        click.echo("\n".join(aligned_table(comparison.engine_rows())))
        click.echo(f"on {count_text(comparison.scans, 'scan')}; {comparison.verdict()}")
    files = sorted(to.iterdir())
    click.echo("\n".join(aligned_table([[path.name, size_text(path.stat().st_size)] for path in files])))
    click.echo(f"student of {run_folder}: {to}")


@click.command()
@run_argument
@data_option
@click.option("--onnx", type=path_type, help="Exported folder, or a graph in it, to measure as well.")
@scans_option
@click.option("--repeats", type=click.IntRange(min=1), default=5, help="Times that each scan is run.")
def latency(run_folder: Path, data: Path, onnx: Path | None, scans: int, repeats: int) -> None:
    """How long a scan takes on this CPU: reading, features and voxels, the network by each engine, labels of points.

    Engines take turns on each scan, with one thread and with all. The tables are kept in RUN/latency.json for the
    model card.

    \b
    Examples:
      polar-distill latency runs/full --data dataset
      polar-distill latency runs/full --data dataset --onnx full_student
    """
    settings = run_settings(run_folder)
    student, label_map = load_student(settings, run_weights(run_folder), CPU)
    dataset = Dataset.open(data, label_map)
    chosen = evenly(dataset.select(dataset.files.sequences()).scans, scans)
    if not chosen:
        raise DataError(f"{data}: no scans here")
    folder = run_folder if onnx is None else onnx if onnx.is_dir() else onnx.parent
    graphs = (folder / "map.onnx").is_file()
    if onnx is not None and not (graphs and onnx.exists()):
        raise SettingsError(f"--onnx {onnx}: no exported student here (map.onnx is missing); write one with export")
    if graphs:
        check_same_student(folder, parameters_of(student, settings, label_map))
    check_replaceable(run_folder / LATENCY_FILE)
    every, found = torch.get_num_threads(), list[Comparison]()
    try:
        for threads in dict.fromkeys((1, every)):
            torch.set_num_threads(threads)
            engines = [*torch_engines(student), *onnx_engines(folder, threads)]
            found.append(compare(engines, dataset, chosen, settings.grid.grid(), repeats))
    finally:
        torch.set_num_threads(every)
    tables = [rows for one in found for rows in (one.part_rows(), one.engine_rows())]
    click.echo("\n\n".join("\n".join(aligned_table(rows)) for rows in tables))
    verdicts = [one.verdict() for one in found]
    click.echo("\n".join(verdicts))
    notes = LatencyNotes(machine=processor(), scans=len(chosen), tables=tables, verdicts=verdicts)
    write_json(run_folder / LATENCY_FILE, notes.model_dump())


def processor() -> str:
    """The machine in a few words."""
    named = Path("/proc/cpuinfo")
    lines = named.read_text().splitlines() if named.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} cores"
