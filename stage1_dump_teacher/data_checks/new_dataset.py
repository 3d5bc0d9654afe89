"""The command `new-dataset`: looks at somebody's files and writes the dataset's YAML file for them."""

from pathlib import Path

import click

from common.base.command_options import path_type
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.base.text import count_text, printable
from common.scans.label_map import LabelMap, load_label_map
from stage1_dump_teacher.data_checks.description import description, drops_origin, is_known, scale_of, unlisted
from stage1_dump_teacher.data_checks.found_files import find_files
from stage1_dump_teacher.data_checks.found_sensor import FoundSensor, look_into

KNOWN = Path("semantic_kitti")


@click.command("new-dataset")
@click.argument("folder", type=path_type)
@click.option("--out", type=path_type, metavar="FILE.yaml", help="Where the description goes. Default: FOLDER's name.")
@click.option("--topic", help="PointCloud2 topic of ROS bags; needed where they have several.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def new_dataset(folder: Path, out: Path | None, topic: str | None, overwrite: bool) -> None:
    """Look at the scans and labels below FOLDER and write a dataset's YAML file for them, commented, ready to edit.

    Finds .bin, .npy, .pcd and .ply files and ROS bags, how many columns they have, points where nothing came back, the
    scale of the reflectance, and label ids.

    \b
    Examples:
      polar-distill new-dataset recordings
      polar-distill new-dataset recordings --out my_sensor.yaml
    """
    name = folder.resolve().name or "my_sensor"
    path = out or Path(f"{name}.yaml")
    if path.exists() and not overwrite:
        raise SettingsError(
            f"{path}: is there already. Choose another file with --out, or replace it with --overwrite."
        )
    known = load_label_map(KNOWN)
    found = look_into(folder, find_files(folder), topic)
    for line in found_lines(found, known):
        click.echo(printable(line))
    write_atomically(path, description(name, found, known).encode())
    click.echo(f"written      {path}: check it, then")
    click.echo(f"next: polar-distill doctor --data {folder} --dataset {path}")


def found_lines(found: FoundSensor, known: LabelMap) -> list[str]:
    """What was found, in words."""
    total, files = sum(found.sequences.values()), found.files
    where = files.labels or (f"column {found.label_column}" if found.label_column else "none found")
    lines = [
        f"scans        {total} in {count_text(len(found.sequences), 'sequence')}: {files.scans}",
        f"looked at    {found.scans} of them, {found.points / found.scans:,.0f} points each",
        f"columns      {', '.join(found.columns)}{'' if found.named else '  (by their values: check them)'}",
        f"reflectance  {found.reflectance or 'none found'}; largest {found.brightest:.4g}, scale {scale_of(found):g}",
        f"at (0, 0, 0) {found.share(found.origin):.1%} of the points{', left out' if drops_origin(found) else ''}",
        f"labels       {where}",
    ]
    if found.missing:
        lines.insert(5, f"NaN          {found.share(found.missing):.1%} of the points, left out")
    if found.raw_ids:
        shares = {raw: count / found.raw_ids.total() for raw, count in found.raw_ids.most_common()}
        lines.append("label ids    " + ", ".join(f"{raw} ({share:.1%})" for raw, share in shares.items()))
        lines.append(f"classes      {'of SemanticKITTI' if is_known(found, known) else 'one for each id: name them'}")
    if unlisted(found, known):
        lines.append(f"note         ids {unlisted(found, known)} are not SemanticKITTI's and are ignored")
    if len(found.sequences) == 1:
        lines.append("note         one sequence only: it stands for training and validation, see splits")
    if files.others:
        others = [f"{count} {suffix}" for suffix, count in list(files.others.items())[:8]]
        lines.append(f"left out     {', '.join(others)}")
    if found.refused:
        lines.append(f"note         {len(found.refused)} could not be read, the first: {found.refused[0]}")
    return lines
