"""Predictions for files, folders and bags: a file of labels for each scan, or a bag with a topic more."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import numpy as np

from common.base.errors import SettingsError
from common.base.files import check_writable, write_atomically
from common.base.text import shortened
from common.scans.formats.files import SensorFiles
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from common.training.predictor import Predictor, ScanPrediction
from stage2_train_student.evaluation.labelled_bag import check_absent, write_labelled_bag
from stage2_train_student.evaluation.own_files import PREDICTED, OwnScans

Kind = Literal["label", "npy", "ply"]


def predict_own(sources: list[OwnScans], predictor: Predictor, out: Path | None, kind: Kind) -> dict[Path, int]:
    """Predict scans without a dataset, and write what is found beside them, or into a folder.

    A scan without points gets a prediction without labels, and a note.

    Returns:
        number of predicted scans by the file or bag that was written.

    Raises:
        SettingsError: two predictions, or a prediction and a scan, would be the same file, or it may hold true labels.
        DataError: a scan cannot be read, or the copy of a bag is there already.
        OSError: a folder cannot be written.
    """
    places = [targets(one, sources, out, kind) for one in sources]
    check_apart(sources, places)
    for folder in {path.parent for place in places for path in place.values()}:
        check_writable(folder)
    written: dict[Path, int] = {}
    silent: list[str] = []

    def predictions(source: OwnScans) -> Iterator[ScanPrediction]:
        """Of a source, one after the other; notes the scans without points."""
        for prediction in predictor.predict(source.dataset, source.scans, source.dataset.root.name or "predict"):
            if not len(prediction.labels):
                silent.append(source.title(prediction.scan))
            yield prediction

    for source, place in zip(sources, places, strict=True):
        if source.bag is None:
            for prediction in predictions(source):
                write_atomically(place[prediction.scan], encoded(source, prediction, kind))
            written |= dict.fromkeys(place.values(), 1)
        else:
            to = place[source.scans[0]]
            files, label_map = source.dataset.files, source.dataset.label_map
            assert isinstance(files, SensorFiles)
            labels = (raw_labels(source, prediction) for prediction in predictions(source))
            colours = colours_of_raw(label_map)
            written[to] = write_labelled_bag(source.bag, files.settings.topic, labels, colours, to)
    if silent:
        click.echo(f"note: scans in which nothing came back have no classes: {shortened(silent)}", err=True)
    return written


def targets(source: OwnScans, sources: list[OwnScans], out: Path | None, kind: Kind) -> dict[ScanId, Path]:
    """Where the prediction of each scan goes: beside it, or below `out` as the scans lie below a common folder."""
    if source.bag is not None:
        name = source.bag.name if source.bag.suffix == ".bag" or source.bag.is_dir() else source.bag.stem
        beside = f"{source.bag.stem}{PREDICTED}{'.bag' if source.bag.suffix == '.bag' else ''}"
        names = dict.fromkeys(source.scans, beside if out is None else name)
    else:
        part = PREDICTED if out is None else ""
        names = {scan: f"{scan.frame}{part}.{kind}" for scan in source.scans}
    folder = source.dataset.root
    if out is not None:
        # Not Path.absolute, which keeps "..": out/.. is not below `out`.
        common = os.path.commonpath([os.path.abspath(one.dataset.root) for one in sources])
        folder = out / os.path.relpath(os.path.abspath(folder), common)
    return {scan: folder / name for scan, name in names.items()}


def check_apart(sources: list[OwnScans], places: list[dict[ScanId, Path]]) -> None:
    """Refuse predictions that would replace each other, a scan, or what may be true labels of a scan.

    Raises:
        SettingsError: some would; names the first.
        DataError: the copy of a bag is there already.
    """
    taken = {real(source.path(scan)) for source in sources for scan in source.scans}
    for source, place in zip(sources, places, strict=True):
        beside = source.dataset.root.resolve()
        # All clouds of a bag go to one bag.
        for path, named in {real(path): path for path in place.values()}.items():
            if path in taken:
                raise SettingsError(
                    f"{path}: two predictions, or a prediction and a scan, would be this file. Predict them one after "
                    "the other, each with another --out."
                )
            if path.exists() and (is_benchmarks_label(path) or is_benchmarks_label(named.absolute())):
                raise SettingsError(
                    f"{path}: is there already, where a benchmark keeps the true labels of velodyne/. Choose another "
                    "--out."
                )
            if path.parent == beside and PREDICTED not in path.name and path.exists():
                raise SettingsError(
                    f"{path}: is there already, beside the scan, perhaps with its true labels. Choose another --out, "
                    f"or none: then names have {PREDICTED} in them."
                )
            if source.bag is not None:
                check_absent(named)
            taken.add(path)


def is_benchmarks_label(path: Path) -> bool:
    """Whether a path is one of true labels in the layout of SemanticKITTI, beside the folder of the scans."""
    return path.parent.name == "labels" and (path.parent.parent / "velodyne").is_dir()


def real(path: Path) -> Path:
    """The path by which a folder's entry can be told from all others, however it is written."""
    return path.parent.resolve() / path.name


def raw_labels(source: OwnScans, prediction: ScanPrediction) -> np.ndarray:
    """Raw label ids of all points of the file, uint32 [M]; "unlabelled" where nothing came back."""
    return source.dataset.label_map.to_raw(source.dataset.files.restored(prediction.scan, prediction.labels))


def encoded(source: OwnScans, prediction: ScanPrediction, kind: Kind) -> bytes:
    """A prediction as a file."""
    if kind == "ply":
        return ply(prediction, source.dataset.label_map)
    raw = raw_labels(source, prediction).astype("<u4")
    if kind == "label":
        return raw.tobytes()
    buffer = io.BytesIO()
    np.save(buffer, raw)
    return buffer.getvalue()


def ply(prediction: ScanPrediction, label_map: LabelMap) -> bytes:
    """The points that were predicted, with raw label ids and colours, as a binary PLY file."""
    points, raw = prediction.source.points, label_map.to_raw(prediction.labels)
    coordinates, colours = ("x", "y", "z", "intensity"), ("red", "green", "blue")
    vertices = np.empty(
        len(points), [*((name, "<f4") for name in coordinates), *((name, "u1") for name in colours), ("label", "<u2")]
    )
    for place, name in enumerate(coordinates):
        vertices[name] = points[:, place]
    for place, name in enumerate(colours):
        vertices[name] = colours_of_raw(label_map)[raw, place]
    vertices["label"] = raw
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {name}" for name in coordinates] + [f"property uchar {name}" for name in colours]
    return "\n".join([*lines, "property ushort label", "end_header", ""]).encode() + vertices.tobytes()


def colours_of_raw(label_map: LabelMap) -> np.ndarray:
    """Red, green, blue of each raw id, uint8 [65536, 3]; those that no class is written as are black."""
    colours = np.zeros((0x10000, 3), np.uint8)
    for info in label_map.classes:
        colours[info.raw_id] = info.colour
    return colours
