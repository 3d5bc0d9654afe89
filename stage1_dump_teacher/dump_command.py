"""The command `dump`."""

from pathlib import Path

import click

from common.config import load_settings
from common.devices import select_device
from common.shards import Shard
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_commands import INTERRUPTED
from stage1_dump_teacher.store_reports import dump_lines


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder that holds sequences/.")
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    required=True,
    help="Cylinder3D checkpoint in the published layout (.pt or .safetensors).",
)
@click.option(
    "--cache",
    default="cache/semantic_kitti",
    show_default=True,
    help="Target store, a folder or a URL such as s3://bucket/prefix; a second run dumps exactly what is missing.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("configs/teachers/cylinder3d.yaml"),
    show_default=True,
    help="What to cache: grid and volume, layers, encoding, views.",
)
@click.option("--shard", metavar="I/N", help="Dump share I (from 0) of N; under torchrun the rank decides.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.pass_context
def dump(
    context: click.Context,
    data: Path,
    teacher: Path,
    cache: str,
    config: Path,
    shard: str | None,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Cache the teacher's targets for every scan of a dataset.

    \b
    Examples:
      polar-distill dump --data dataset --teacher cylinder3d_val_65.4.pt
      polar-distill dump --data dataset --teacher teacher.pt --set profile=train --set views.count=4
      torchrun --nproc-per-node=4 -m polar_distill dump --data dataset --teacher teacher.pt
    """
    # Imported here so that the other commands start where spconv does not.
    from stage1_dump_teacher.dump import run

    settings = load_settings(DumpSettings, config, overrides)
    report = run(settings, data, teacher, cache, select_device(device), Shard.of_process(shard))
    click.echo("\n".join(dump_lines(report)))
    if report.left:
        context.exit(INTERRUPTED)
    click.echo(f"next: make train-student EXPERIMENT=full CACHE={cache} DATA={data}")
