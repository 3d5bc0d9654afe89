"""Tables and a picture of how well targets fit augmented clouds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.base.files import replacing
from common.base.text import markdown_table
from stage1_dump_teacher.consistency.agreement import Agreement, PointAgreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DIAMONDS: dict[str, Any] = {"color": "black", "marker": "D", "s": 22, "zorder": 3}
SMALLEST_DIVERGENCE = 1e-9
"""Below it a divergence is rounding."""


BORDER = "phi = +-pi"
"""Where the live teacher's convolutions end."""


def markdown_tables(rows: Mapping[tuple[str, str], Agreement], border: str = BORDER) -> list[str]:
    """Three Markdown tables of agreements by augmentation and way.

    Logits and cosines; logits by distance from a border; relative L2 and the pillars reached.
    """
    first = next(iter(rows.values()))
    logits = [["augmentation", "targets", "arg-max", "KL", *first.layers]]
    places = [["augmentation", "targets", *first.places]]
    features = [["augmentation", "targets", *(f"{name} L2 (reached)" for name in first.layers)]]
    for start, found in rows.items():
        cosines = [f"{layer.cosine:.3f}" for layer in found.layers.values()]
        logits.append([*start, f"{found.argmax:.3f}", f"{found.divergence:.1e}", *cosines])
        places.append([*start, *map(place_cell, found.places.values())])
        features.append([*start, *(f"{part.relative_l2:.3f} ({part.reached:.3f})" for part in found.layers.values())])
    return [
        "Agreement with the live teacher: arg-max over points, KL at T = 10, cosine of channel-centred pillar features",
        "",
        *markdown_table(logits),
        "",
        f"Arg-max agreement and KL by distance of points from {border}, and the share of all KL that lies there; then "
        "the accuracy of the targets / of the live teacher against the labels, if there are any",
        "",
        *markdown_table(places),
        "",
        "Relative L2 of pillar features with absent pillars as zeros, and the share of the teacher's pillars reached",
        "",
        *markdown_table(features),
    ]


def place_cell(part: PointAgreement) -> str:
    """A dash where the grid has no such place; without labels it does not say who is right."""
    if np.isnan(part.argmax):
        return "-"
    cell = f"{part.argmax:.3f}, {part.divergence:.1e} ({part.divergence_share:.0%})"
    return cell if np.isnan(part.right) else f"{cell}; {part.right:.3f} / {part.live_right:.3f}"


def draw(rows: Mapping[tuple[str, str], Agreement], path: Path, border: str = BORDER) -> None:
    """Draw the same agreements as a PNG: arg-max agreement, divergence, and the cosine of every layer.

    Diamonds stand for the points that are farthest from the border.
    """
    # Without pyplot there is no window system to ask for and no state to leave behind.
    from matplotlib.figure import Figure

    means, names = list(rows.values()), [f"{augmentation} ({way})".replace(" ()", "") for augmentation, way in rows]
    figure = Figure(figsize=(15, 2.2 + 0.38 * len(rows)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.4))
    left.set(yticks=range(len(rows)), yticklabels=names)
    draw_arg_max(left, means, border)
    draw_divergence(middle, means)
    figure.colorbar(draw_cosines(right, means), ax=right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw_arg_max(axes: "Axes", means: Sequence[Agreement], border: str) -> None:
    """Bars of arg-max agreement from somewhat below the smallest up to 1, and diamonds."""
    places, values = range(len(means)), [one.argmax for one in means]
    far, away = [list(one.places.values())[-1].argmax for one in means], list(means[0].places)[-1]
    lowest = max(0.0, min(values) - 0.15 * (1.0 - min(values)) - 0.01)
    axes.barh(places, values, color="tab:blue", label="all points")
    axes.scatter(far, places, label=f"points far from {border} ({away})", **DIAMONDS)
    for place, value in zip(places, values, strict=True):
        axes.text(lowest, place, f" {value:.3f}", va="center", fontsize=8, color="white")
    axes.set(title="arg-max agreement over points", xlim=(lowest, 1.0 + 0.03 * (1.0 - lowest)))


def draw_divergence(axes: "Axes", means: Sequence[Agreement]) -> None:
    """Bars of the divergence and diamonds, on a logarithmic axis; none at all counts as its left end."""
    places, values = range(len(means)), [one.divergence for one in means]
    far = [list(one.places.values())[-1].divergence for one in means]
    known = [value for value in (*values, *far) if value > SMALLEST_DIVERGENCE]
    lowest, highest = min(known, default=SMALLEST_DIVERGENCE) / 10, 2 * max(known, default=1.0)
    axes.barh(places, [max(value, lowest) for value in values], color="tab:orange", log=True)
    axes.scatter([max(value, lowest) for value in far], places, **DIAMONDS)
    for place, value in zip(places, values, strict=True):
        axes.text(lowest, place, f" {value:.1e}", va="center", fontsize=8)
    axes.set(title="KL at T = 10 (nats)", xlim=(lowest, highest))


def draw_cosines(axes: "Axes", means: Sequence[Agreement]) -> "AxesImage":
    """Cosine of every layer as a table in colour."""
    layers = list(means[0].layers)
    values = np.array([[one.layers[name].cosine for name in layers] for one in means])
    # From the top down, and with it the axes that share its rows.
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto", origin="upper")
    axes.set(title="cosine of channel-centred pillar features", xticks=range(len(layers)), xticklabels=layers)
    for place, column in np.ndindex(values.shape):
        value = values[place, column]
        colour = "black" if value > 0.6 else "white"
        axes.text(column, place, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return image
