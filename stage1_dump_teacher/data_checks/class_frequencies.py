"""The command `class-frequencies`: how common each label id is, written where the class weights come from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import yaml
from tqdm import tqdm

from common.base.command_options import data_option, path_type
from common.base.config import parse_settings, read_yaml
from common.base.config_files import find_config, lasting
from common.base.errors import DataError, SettingsError
from common.base.files import write_atomically
from common.base.overlap import started_ahead
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from stage1_dump_teacher.data_checks.survey import count_ids

READERS = 4


@click.command("class-frequencies")
@data_option
@click.option("--dataset", type=path_type, required=True, help="YAML file with the dataset's format and classes.")
@click.option("--split", "splits", multiple=True, default=["train"], help="Split or sequence to count; repeatable.")
@click.option("--write", is_flag=True, help="Put the shares into your YAML file; without it they are printed.")
def class_frequencies(data: Path, dataset: Path, splits: tuple[str, ...], write: bool) -> None:
    """Count the points of each label id, for the class weights of the losses (`content` in the dataset's YAML file).

    Everything else in the file stays as it is, comments too. An id that learning_map does not list is reported.

    \b
    Examples:
      polar-distill class-frequencies --data dataset --dataset my_sensor.yaml
      polar-distill class-frequencies --data dataset --dataset my_sensor.yaml --write
    """
    found = find_config(dataset, LabelMap.config_folder)
    if found is None:
        raise SettingsError(f"{dataset}: no such file.")
    # A path says which file is meant; a name may stand for one that other datasets and users share.
    if write and not dataset.exists() and not lasting(dataset, LabelMap.config_folder).is_absolute():
        raise SettingsError(
            f"{dataset}: stands for {found}, which is installed with the program. Copy it to a file of your own and "
            "name that with --dataset, here and wherever the dataset is named; without --write the shares are printed."
        )
    label_map = without_content(found)
    opened = Dataset.open(data, label_map)
    scans, notes = opened.select(splits)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    shares = count_shares(opened, scans)
    click.echo(f"{sum(share > 0 for share in shares.values())} label ids in {len(scans)} scans of {', '.join(splits)}")
    for raw, share in shares.items():
        if raw not in label_map.learning_map:
            click.echo(f"note: id {raw} ({share:.3%} of the points) is not in learning_map; add the line")
            click.echo(f"        {raw}: 0    # 0 ignores it; otherwise the number of its class")
    listed = dict.fromkeys(label_map.learning_map, 0.0) | shares
    content = dict(sorted(listed.items()))
    if write:
        text = with_content(found.read_bytes().decode(), content)
        write_atomically(found, text.encode())
        click.echo(f"written to `content` in {found}; weights of classes follow from it")
    else:
        click.echo("content:\n" + "\n".join(f"  {raw}: {share:.10g}" for raw, share in content.items()))


def without_content(path: Path) -> LabelMap:
    """A dataset's description that need not say yet how common its labels are.

    Raises:
        SettingsError: something else is wrong with it.
    """
    folders: list[Path] = []
    values = read_yaml(path, folders=folders)
    learning_map, content = values.get("learning_map"), values.get("content")
    if isinstance(learning_map, dict):
        values["content"] = dict.fromkeys(learning_map, 0.0) | (content if isinstance(content, dict) else {})
    return parse_settings(LabelMap, values, str(path), folders)


def count_shares(dataset: Dataset, scans: Sequence[ScanId]) -> dict[int, float]:
    """Share of the points of labelled scans by raw id, in order of ids.

    Raises:
        DataError: a scan or its labels cannot be read, or none has labels.
    """
    labelled = [scan for scan in scans if dataset.has_labels(scan)]
    if not labelled:
        raise DataError(f"{dataset.root}: none of {len(scans)} scans has labels, so there is nothing to count.")

    def ids_of(scan: ScanId) -> Counter[int]:
        return count_ids(dataset.files.raw_labels(scan, len(dataset.files.points(scan))))

    counts: Counter[int] = Counter()
    started = started_ahead(ids_of, labelled, 2 * READERS, READERS)
    for _, future in tqdm(started, total=len(labelled), unit="scan", desc="class-frequencies"):
        counts.update(future.result())
    return {raw: count / counts.total() for raw, count in sorted(counts.items())}


def with_content(text: str, content: dict[int, float]) -> str:
    """The text of a dataset's YAML file with other values under `content`; all else, comments too, as it was."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    node = next((value for key, value in pairs if key.value == "content"), None)
    if node is None:
        lines = ["content:    # share of all training points by raw id; weights of classes come from it"]
        lines += [f"  {pair}" for pair in _pairs(content.items())]
        return text + ("" if text.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        # Nothing, or all in braces: it has no lines of its own to keep.
        start, end = node.start_mark.index, node.end_mark.index
        return text[:start].rstrip(" ") + " {" + ", ".join(_pairs(content.items())) + "}" + text[end:]
    # New ids follow the last line, then each share is replaced: from the end to the start, so that places stay true.
    line_end = "\r\n" if "\r\n" in text else "\n"
    there = {yaml.safe_load(key.value) for key, _ in node.value}
    *_, (last_key, last_value) = node.value
    after = text.find("\n", last_value.end_mark.index)
    after = len(text) if after < 0 else after + 1
    indent = " " * last_key.start_mark.column
    missing = _pairs(item for item in content.items() if item[0] not in there)
    added = "".join(f"{indent}{pair}{line_end}" for pair in missing)
    gap = line_end if added and not text[:after].endswith("\n") else ""
    text = text[:after] + gap + added + text[after:]
    for key, value in reversed(node.value):
        share = f"{content.get(yaml.safe_load(key.value), 0.0):.10g}"
        text = text[: value.start_mark.index] + share + text[value.end_mark.index :]
    return text


def _pairs(items: Iterable[tuple[int, float]]) -> list[str]:
    return [f"{raw}: {share:.10g}" for raw, share in items]
