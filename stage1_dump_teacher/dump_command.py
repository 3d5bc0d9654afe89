"""The command `dump`."""

from pathlib import Path

import click

from common.base.command_options import cache_option, data_option, device_option, teacher_option
from common.base.devices import select_device
from common.base.shards import Shard
from common.base.signals import INTERRUPTED
from stage1_dump_teacher.command_options import settings_options
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.reports import dump_lines


@click.command()
@data_option
@teacher_option
@cache_option
@settings_options
@click.option("--shard", metavar="I/N", help="Dump share I (from 0) of N; under torchrun the rank decides.")
@device_option
def dump(
    data: Path,
    teacher: Path,
    cache: str,
    settings: DumpSettings,
    shard: str | None,
    device: str,
) -> None:
    """Cache the teacher's targets for every scan of a dataset. A second run dumps exactly what is missing.

    \b
    Examples:
      polar-distill dump --data dataset --teacher cylinder3d_val_65.4.pt
      polar-distill dump --data dataset --teacher teacher.pt --set profile=train --set views.count=4
      torchrun --nproc-per-node=4 -m polar_distill dump --data dataset --teacher teacher.pt
    """
    # Imported here so that the other commands start where spconv does not.
    from stage1_dump_teacher.dump import run

    report = run(settings, data, teacher, cache, select_device(device), Shard.of_process(shard))
    click.echo("\n".join(dump_lines(report)))
    if report.left:
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(f"next: make train-student EXPERIMENT=full CACHE={cache} DATA={data}")
