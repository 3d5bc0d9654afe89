"""The command `dump`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from common.base.cluster import ray_option
from common.base.command_options import cache_option, data_option, device_option, teachers_option
from common.base.config import read_yaml
from common.base.config_files import find_config
from common.base.devices import select_device
from common.base.errors import SettingsError
from common.base.shards import Shard
from common.base.signals import INTERRUPTED
from common.base.text import command_line
from common.scans.dataset import GridSettings
from common.targets.store import TargetStore
from stage1_dump_teacher.cluster import run_on_cluster
from stage1_dump_teacher.command_options import settings_options, shared_words
from stage1_dump_teacher.dump import run
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.reports import dump_lines


@click.command()
@data_option
@teachers_option(
    required=True,
    help="Cylinder3D checkpoint in the published layout (.pt or .safetensors), or a folder of recorded predictions. "
    "Repeat it to average several; layers are those of the first.",
)
@cache_option
@settings_options
@click.option("--shard", metavar="I/N", help="Dump share I (from 0) of N; under torchrun the rank decides.")
@ray_option
@device_option
def dump(
    data: Path,
    teachers: tuple[Path, ...],
    cache: str,
    settings: DumpSettings,
    shard: str | None,
    address: str | None,
    device: str,
) -> None:
    """Cache the teacher's targets for every scan of a dataset. A second run dumps exactly what is missing.

    \b
    Examples:
      polar-distill dump --data dataset --teacher cylinder3d_val_65.4.pt
      polar-distill dump --data dataset --teacher teacher.pt --set profile=train --set views.count=4
      torchrun --nproc-per-node=4 -m polar_distill dump --data dataset --teacher teacher.pt
      polar-distill dump --data dataset --teacher teacher.pt --ray auto
      polar-distill dump --data dataset --teacher a.pt --teacher b.pt --set views_averaged=8
    """
    share = Shard.of_process(shard)
    if address is None:
        report = run(settings, data, teachers, cache, select_device(device), share)
    elif share != Shard():
        raise SettingsError("--ray hands out scans itself: leave out --shard and torchrun")
    else:
        report = run_on_cluster(settings, data, teachers, cache, device, address)
    click.echo("\n".join(dump_lines(report)))
    if report.left:
        raise click.exceptions.Exit(INTERRUPTED)
    words = training_words(settings, TargetStore.open(cache).identity.layers)
    if words:
        when = "next" if share.count == 1 else "next, once all shards are done"
        click.echo(f"{when}: {command_line('train', '--data', data, '--cache', cache, *words)}")


def training_words(settings: DumpSettings, layers: Collection[str]) -> list[str]:
    """Options with which `train` takes what was dumped, these layers; none where nothing was dumped to train on."""
    learnt = [name for name in settings.splits if not name.endswith(("val", "test"))]
    found = ((name, find_config(name, "experiments")) for name in (f"full_{settings.dataset.stem}", "full", "pvkd"))
    fitting = ((name, read_yaml(path)) for name, path in found if path)
    fallback: tuple[str, dict[str, Any]] = ("logit", {})
    experiment, usual = next(((name, values) for name, values in fitting if learns_from(values, layers)), fallback)
    grid = GridSettings.model_validate(usual.get("grid") or {})
    words = ["--experiment", experiment, *shared_words(settings.dataset, settings.grid, grid)]
    if "train" not in learnt:
        words += ["--set", f"train={json.dumps(learnt)}"]
    return words if learnt else []


def learns_from(experiment: dict[str, Any], layers: Collection[str]) -> bool:
    """Whether these layers are all that the terms of an experiment read, as its YAML file says."""
    distillation = experiment.get("distillation") or {}
    weights = {**distillation, **(distillation.get("others") or {})}
    return all(pair["teacher"] in layers for pair in distillation.get("pairs") or () if weights.get(pair["term"]))
