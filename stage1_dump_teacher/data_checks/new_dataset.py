"""The command `new-dataset`: looks at somebody's files and writes the dataset's YAML file, commented, ready to edit."""

import colorsys
import json
from pathlib import Path

import click

from common.base.command_options import path_type
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.base.text import command_line, count_text, printable
from common.scans.label_map import ClassInfo, LabelMap, load_label_map
from stage1_dump_teacher.data_checks.found_files import find_files
from stage1_dump_teacher.data_checks.found_sensor import FoundSensor, look_into

KNOWN = Path("semantic_kitti")

CLEAR_ORIGIN = 0.001
"""Share of points at the origin from which on they are left out."""

SCALES = (1.0, 100.0, 200.0, 255.0, 1000.0, 4095.0, 65535.0)
"""Largest reflectances that sensors say."""

KNOWN_SHARE = 0.5
"""Of the labelled points: from so many on whose ids are SemanticKITTI's, they are taken for it."""


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
    click.echo(f"next: {command_line('doctor', '--data', folder, '--dataset', path)}")


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


def description(name: str, found: FoundSensor, known: LabelMap) -> str:
    """The text of the YAML file of a dataset; `known` are SemanticKITTI's classes."""
    return "\n".join([_head(name, found), _options(found), *_classes(found, known), _splits(found)])


def scale_of(found: FoundSensor) -> float:
    """What brings the reflectance to 0..1."""
    largest = next((scale for scale in SCALES if found.brightest <= scale), found.brightest)
    return float(f"{1 / largest:.6g}")


def drops_origin(found: FoundSensor) -> bool:
    """Whether points where nothing came back are to be left out."""
    return found.missing > 0 or found.share(found.origin) > CLEAR_ORIGIN


def is_known(found: FoundSensor, known: LabelMap) -> bool:
    """Whether labels are SemanticKITTI's, as far as their ids tell; also where there are none."""
    classes = {raw: count for raw, count in found.raw_ids.items() if raw != 0}
    agreeing = [raw for raw in classes if raw in known.learning_map]
    return not classes or (
        len(agreeing) > 1 and sum(classes[raw] for raw in agreeing) > KNOWN_SHARE * sum(classes.values())
    )


def unlisted(found: FoundSensor, known: LabelMap) -> list[int]:
    """Ids of labels that are otherwise SemanticKITTI's, and which it does not have."""
    return sorted(raw for raw in found.raw_ids if raw not in known.learning_map) if is_known(found, known) else []


def _head(name: str, found: FoundSensor) -> str:
    counts = ", ".join(f"{sequence}: {count}" for sequence, count in list(found.sequences.items())[:20])
    return (
        f"# Written by polar-distill new-dataset, from {found.scans} of {sum(found.sequences.values())} scans. "
        "Check each line, then:\n"
        "#   polar-distill doctor --data DATA --dataset this.yaml\n"
        f"# Scans by sequence: {counts}{', ...' if len(found.sequences) > 20 else ''}\n"
        f"name: {_text(name)}\n"
        "format: files\n"
    )


def _options(found: FoundSensor) -> str:
    brightest = f"largest found: {found.brightest:.4g}; published teachers know reflectances of 0 to 1"
    dropped = f"{found.share(found.origin):.1%} of the points found at (0, 0, 0)" + (
        f", {found.share(found.missing):.1%} with NaN" if found.missing else ""
    )
    named = "named in the files" if found.named else "found by their values: check them"
    lines = [
        f"  scans: {_text(found.files.scans)}    # below DATA",
        f"  labels: {_text(found.files.labels)}    # null: none",
        *([f"  label_column: {_text(found.label_column)}"] if found.label_column else []),
        f"  columns: [{', '.join(map(_text, found.columns))}]    # {named}",
        f"  reflectance: {_text(found.reflectance)}    # null: none, 0 everywhere",
        f"  reflectance_scale: {scale_of(found):g}    # {brightest}",
        f"  drop_origin: {str(drops_origin(found)).lower()}    # {dropped}: nothing came back there",
        f"  topic: {_text(found.topic)}    # of bags with several topics",
    ]
    return "options:\n" + "\n".join(lines) + "\n"


def _classes(found: FoundSensor, known: LabelMap) -> list[str]:
    """The blocks `classes`, `learning_map` and `content`."""
    others = unlisted(found, known)
    if is_known(found, known):
        classes, learning_map = known.classes, known.learning_map | dict.fromkeys(others, 0)
        note = "# SemanticKITTI's, whose ids were found here. Published checkpoints need them in this order.\n"
        if not found.raw_ids:
            note = "# No labels found; these are SemanticKITTI's classes, which published checkpoints know.\n"
    else:
        ids = sorted({0, *found.raw_ids})
        classes = [ClassInfo(name="unlabelled", raw_id=0, colour=(0, 0, 0))]
        classes += [ClassInfo(name=f"id_{raw}", raw_id=raw, colour=_colour(place)) for place, raw in enumerate(ids[1:])]
        learning_map = {raw: label for label, raw in enumerate(ids)}
        note = "# Rename them. Class 0 is ignored; several ids may share a class: then take the others out here.\n"
    labelled = max(found.raw_ids.total(), 1)
    listed = [f"  - {{name: {info.name}, raw_id: {info.raw_id}, colour: {list(info.colour)}}}" for info in classes]
    mapped, shares = [], []
    for raw, label in sorted(learning_map.items()):
        share = found.raw_ids[raw] / labelled
        seen = f"{share:.3%} of the points" if raw in found.raw_ids else "not seen"
        strange = ", not SemanticKITTI's: which class?" if raw in others else ""
        mapped.append(f"  {raw}: {label}    # {classes[label].name}; {seen}{strange}")
        shares.append(f"  {raw}: {share if found.raw_ids else known.content[raw]:.8g}")
    return [
        note + "classes:\n" + "\n".join(listed) + "\n",
        "# Label id -> class, by the place in `classes`.\nlearning_map:\n" + "\n".join(mapped) + "\n",
        "# Share of all points by label id, of the scans that were looked at; of all of them by: polar-distill\n"
        "# class-frequencies --data DATA --dataset this.yaml --write\ncontent:\n" + "\n".join(shares) + "\n",
    ]


def _splits(found: FoundSensor) -> str:
    names = list(found.sequences)
    train, validation = (names[:-1], names[-1:]) if len(names) > 1 else (names, names)
    note = "" if len(names) > 1 else "    # the only sequence: mIoU on it says nothing about other places"
    text = "splits:\n  train: [" + ", ".join(map(_text, train)) + "]\n"
    return f"{text}  val: [{', '.join(map(_text, validation))}]{note}\n  test: []\n"


def _colour(place: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(place * 0.618 % 1, 0.7, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _text(text: str | None) -> str:
    """As YAML, of which JSON is a part."""
    return json.dumps(text, ensure_ascii=False)
