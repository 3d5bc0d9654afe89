"""How many columns a file of bare numbers has, and what they are."""

from collections.abc import Sequence

import numpy as np

FEWEST, MOST = 3, 16
LOOKED_AT = 400_000
"""Numbers of a file."""

CLEAR = 0.02
"""Share of the variance that columns must explain."""

AS_GOOD = 0.95
"""Two points side by side explain as much as one: of the widths that explain nearly the most, the smallest counts."""

FAR_WORSE = 0.5
MOST_RINGS = 256
REFLECTANCES = ("intensity", "reflectance", "reflectivity", "remission", "i")
LABELS = ("label", "labels", "class", "semantic", "classification", "scalar_label", "sem_class")


def width_scores(numbers: np.ndarray) -> dict[int, float]:
    """How well float32 [M] can be rows of so many columns, by that number: the share of the variance that they explain.

    Columns differ in size and sign: with the right number of them, the column explains much of both.
    """
    finite = np.where(np.isfinite(numbers), numbers, 0).astype(np.float64)
    features = np.stack((np.log1p(np.abs(finite)), np.sign(finite)))
    scores: dict[int, float] = {}
    for width in range(FEWEST, MOST + 1):
        rows = min(len(numbers), LOOKED_AT) // width
        if len(numbers) % width or rows < 2:
            continue
        part = features[:, : rows * width].reshape(2, rows, width)
        spread = part.var(axis=(1, 2))
        scores[width] = float(np.mean(part.mean(axis=1).var(axis=1) / np.where(spread > 0, spread, 1)))
    return scores


def guess_width(scores: dict[int, float]) -> int | None:
    """The number of columns that `width_scores` speak for; None where it cannot be told."""
    best = max(scores.values(), default=0.0)
    if best < CLEAR:
        return None
    return min(width for width, score in scores.items() if score >= AS_GOOD * best)


def contradicted(numbers: np.ndarray, width: int) -> int | None:
    """The number of columns that fits float32 [M] far better than `width` does; None where none does."""
    scores = width_scores(numbers)
    guessed = guess_width(scores)
    return guessed if guessed is not None and scores.get(width, 0.0) < FAR_WORSE * scores[guessed] else None


def name_columns(rows: np.ndarray) -> list[str]:
    """Names for the columns of float [N, C]: x, y, z, then intensity, ring, and what cannot be told by its number."""
    names = ["x", "y", "z"]
    for place in range(3, rows.shape[1]):
        column = rows[np.isfinite(rows[:, place]), place]
        measured = bool(len(column)) and column.min() >= 0
        numbered = measured and column.max() < MOST_RINGS and bool((column == np.floor(column)).all())
        if measured and "intensity" not in names:
            names.append("intensity")
        elif numbered and "ring" not in names:
            names.append("ring")
        else:
            names.append(f"column_{place + 1}")
    return names


def column_called(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The column that has one of some known names, such as `LABELS`, the first known first; None where none has."""
    return next((name for wanted in known for name in names if name.lower() == wanted), None)
