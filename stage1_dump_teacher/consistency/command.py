"""The command `consistency`: targets on augmented clouds against the live teacher."""

from pathlib import Path

import click

from common.base.command_options import data_option, device_option, path_type, teacher_option
from common.base.devices import select_device
from common.base.errors import SettingsError
from common.scans.dataset import open_dataset
from common.scans.polar_grid import check_distillable
from common.scans.view import AnchorSet
from stage1_dump_teacher.command_options import settings_options
from stage1_dump_teacher.consistency import measure as measures
from stage1_dump_teacher.consistency.report import BORDER, draw, markdown_tables
from stage1_dump_teacher.settings import DumpSettings


@click.command()
@data_option
@teacher_option
@click.option(
    "--policy",
    type=click.Choice(["transport", "anchors", "replay", "mix"]),
    default="transport",
    help="transport: targets of the scan as it is, moved to each augmentation; anchors: targets of the nearest of an "
    "anchor set, rotated by whole bins, as in training; replay: targets of drawn views, through the store's encoding; "
    "mix: targets of two scans, swapped by azimuth sectors.",
)
@click.option("--scans", "count", type=click.IntRange(min=1), default=1, help="Scans to measure on.")
@click.option(
    "--augmentation",
    "augmentations",
    multiple=True,
    metavar="KIND:VALUE",
    help="rotate:DEGREES, bins:AZIMUTH_BINS, flip:x, flip:y or scale:FACTOR; repeatable (transport). Default: ten of "
    "them.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    help="Views of each scan, or mixtures of each two. Default of replay and mix: 8; of anchors: every flip in every "
    "aligned rotation.",
)
@click.option("--picture", type=path_type, metavar="FILE.png", help="Draw the comparison.")
@settings_options
@device_option
def consistency(
    data: Path,
    teacher: Path,
    policy: str,
    count: int,
    augmentations: tuple[str, ...],
    draws: int | None,
    picture: Path | None,
    settings: DumpSettings,
    device: str,
) -> None:
    """Measure how well cached targets fit augmented clouds, against the live teacher.

    \b
    Examples:
      polar-distill consistency --data dataset --teacher teacher.pt --picture transport.png
      polar-distill consistency --data dataset --teacher teacher.pt --policy anchors --draws 20 \\
        --set views.anchors.rotations=4
    """
    if augmentations and policy != "transport":
        raise SettingsError(f"--augmentation: policy {policy} draws its views; use --draws, or --policy transport")
    shape, dataset = settings.grid.grid().shape, open_dataset(data, settings.dataset)
    check_distillable(shape)
    see = measures.live_teacher(teacher, settings, dataset.label_map, select_device(device))
    scans = measures.spread_scans(dataset, settings.splits, count)
    if policy == "transport":
        names = augmentations or measures.DEFAULT_AUGMENTATIONS
        found = measures.measure_transport(scans, see, [measures.augmentation_named(name, shape[1]) for name in names])
    elif policy == "anchors":
        found = measures.measure_anchors(scans, see, settings.views.anchors or AnchorSet(), shape[1], draws)
    elif policy == "mix":
        found = measures.measure_mix(scans, see, shape[1], draws or 8)
    else:
        found = measures.measure_replay(scans, see, settings.views.policy, draws or 8, settings.encoding)
    agreements = list(found)
    rows = listed = measures.means(agreements)
    if policy == "anchors":
        rows = dict(sorted(rows.items()))
        listed = rows | measures.means(("all", "", agreement) for _, _, agreement in agreements)
    border = "the nearest cut" if policy == "mix" else BORDER
    click.echo("\n".join(markdown_tables(listed, border)))
    if picture is not None:
        draw(rows, picture, border)
        click.echo(f"\npicture  {picture}")
