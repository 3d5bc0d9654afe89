"""Tables and a picture of how well targets fit augmented clouds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stage1_dump_teacher.consistency import Row, mean


def markdown_tables(rows: Sequence[Row], all_together: bool = False) -> list[str]:
    """Two Markdown tables, means over scans: logits and cosines, then relative L2 and the share of pillars reached.

    Args:
        rows: at least one.
        all_together: add a row with the mean over all measurements.
    """
    if all_together:
        rows = [*rows, Row("all", "", [one for row in rows for one in row.scans])]
    layers = list(rows[0].scans[0].layers)
    first = table_head(["augmentation", "targets", "arg-max", "KL", *layers])
    second = table_head(["augmentation", "targets", *(f"{name} L2 (reached)" for name in layers)])
    for row in rows:
        found = mean(row.scans)
        cosines = [f"{found.layers[name].cosine:.3f}" for name in layers]
        start = [row.augmentation, row.way]
        first.append(table_row([*start, f"{found.argmax:.3f}", f"{found.divergence:.1e}", *cosines]))
        errors = [f"{part.relative_l2:.3f} ({part.reached:.3f})" for part in found.layers.values()]
        second.append(table_row([*start, *errors]))
    return [
        "Agreement with the live teacher: arg-max over points, KL at T = 10, cosine of channel-centred pillar features",
        "",
        *first,
        "",
        "Relative L2 of pillar features with absent pillars as zeros, and the share of the teacher's pillars reached",
        "",
        *second,
    ]


def table_head(cells: Sequence[str]) -> list[str]:
    """Head of a Markdown table."""
    return [table_row(cells), table_row(["---"] * len(cells))]


def table_row(cells: Sequence[str]) -> str:
    """Row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the same means as a PNG: arg-max agreement, divergence, and the cosine of every layer."""
    # Without pyplot there is no window system to ask for and no state to leave behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    means = [mean(row.scans) for row in rows]
    names = [f"{row.augmentation} ({row.way})" for row in rows]
    layers = list(means[0].layers)
    places = np.arange(len(rows))
    figure = Figure(figsize=(15, 1.8 + 0.38 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, divergences, cosines = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.4))
    bars.barh(places, [one.argmax for one in means], color="tab:blue")
    bars.set(xlim=(0, 1.12), title="arg-max agreement over points", yticks=places, yticklabels=names)
    smallest = 1e-8
    divergences.barh(places, [max(one.divergence, smallest) for one in means], color="tab:orange", log=True)
    divergences.set(title="KL at T = 10 (nats)", xlim=(smallest, max(1.0, *(5 * one.divergence for one in means))))
    for place, one in zip(places, means, strict=True):
        bars.text(one.argmax + 0.01, place, f"{one.argmax:.3f}", va="center", fontsize=8)
        divergences.text(max(one.divergence, smallest) * 1.2, place, f"{one.divergence:.0e}", va="center", fontsize=8)
    values = np.array([[one.layers[name].cosine for name in layers] for one in means])
    image = cosines.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    cosines.set(title="cosine of channel-centred pillar features", xticks=range(len(layers)), xticklabels=layers)
    for place, column in np.ndindex(values.shape):
        value = values[place, column]
        colour = "black" if value > 0.6 else "white"
        cosines.text(column, place, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=cosines)
    # Axes are shared: inverting one puts the first row on top in all of them.
    if not cosines.yaxis_inverted():
        cosines.invert_yaxis()
    figure.savefig(path, format="png", dpi=110)
