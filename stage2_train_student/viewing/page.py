"""Scans in 3D as one HTML page that needs nothing but itself and a browser."""

import base64
from collections.abc import Iterable
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from common.scans.label_map import LabelMap
from common.training.metrics import ConfusionMatrix

SCRIPTS = ("camera.js", "cloud.js", "page.js", "hands.js")
STEPS = 2**16 - 1
"""Of a coordinate: 4 mm where a scan is 240 m wide."""

BRIGHT = 0.99
"""Share of points whose reflectance the colours tell apart; a few reflectors would leave all others dark."""


class Opinion(NamedTuple):
    """What somebody says about the points of a scan: classes uint8 [N], and how sure, float [N] in 0..1."""

    who: str
    classes: np.ndarray
    confidence: np.ndarray


class ViewedScan(NamedTuple):
    """A scan and what is known about it.

    Attributes:
        name: for the list of scans.
        points: float32 [N, 4].
        truth: uint8 [N] training labels, 0 = unlabelled; None where there are none.
        opinions: the student's, then the teacher's where there is one.
    """

    name: str
    points: np.ndarray
    truth: np.ndarray | None
    opinions: list[Opinion]


def page(title: str, scans: list[ViewedScan], label_map: LabelMap) -> str:
    """The page, as HTML with everything inside."""
    classes = [{"name": info.name, "colour": list(info.colour)} for info in label_map.classes]
    data = {"classes": classes, "scans": [packed(scan, label_map) for scan in scans]}
    names = [scan.name for scan in scans]
    return filled_page(__package__, SCRIPTS, title=title, dataset=label_map.name, names=names, data=data)


def filled_page(package: str, scripts: Iterable[str], **values: Any) -> str:
    """The page.html that lies in a package, with values, the package's page.css and some of its scripts inside."""
    files = resources.files(package)
    html, css, *code = (files.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css", *scripts))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(html).render(values, css=Markup(css), script=Markup("\n".join(code)))


def packed(scan: ViewedScan, label_map: LabelMap) -> dict[str, Any]:
    """A scan as the page's script reads it: arrays in base64, coordinates in whole steps from the lowest.

    Points come in a random order, the same one every time, so that the first of them, drawn alone, show the whole scan.
    """
    order = np.random.default_rng(0).permutation(len(scan.points))
    points, truth = scan.points[order], None if scan.truth is None else scan.truth[order]
    opinions = [Opinion(who, classes[order], confidence[order]) for who, classes, confidence in scan.opinions]
    low = points.min(axis=0).astype(np.float64)
    step = (points.max(axis=0) - low) / STEPS
    steps = np.rint((points - low) / np.where(step > 0, step, 1)).astype("<u2")
    # The reflectance that gets the brightest colour; above the lowest, also where all are equal.
    bright = max(float(np.quantile(points[:, 3], BRIGHT)), float(low[3]) + 1e-6)
    return {
        "points": encoded(steps),
        "low": low.tolist(),
        "step": step.tolist(),
        "bright": bright,
        "truth": None if truth is None else encoded(truth),
        "opinions": [packed_opinion(one, truth, label_map) for one in opinions],
    }


def packed_opinion(opinion: Opinion, truth: np.ndarray | None, label_map: LabelMap) -> dict[str, Any]:
    """What somebody says, and how right it is where that is known: shares in 0..1, None for what does not occur."""
    who, classes, confidence = opinion
    found = {"who": who, "classes": encoded(classes), "confidence": encoded(np.rint(255 * confidence).astype(np.uint8))}
    if truth is None:
        return found | {"iou": None, "miou": None, "right": None}
    matrix = ConfusionMatrix.of(truth, classes, len(label_map.classes))
    miou, right = (None if np.isnan(share) else share for share in (matrix.mean_iou(), matrix.accuracy()))
    return found | {"iou": [None, *matrix.iou_of(label_map.names).values()], "miou": miou, "right": right}


def encoded(array: np.ndarray) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
