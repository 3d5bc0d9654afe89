"""Collects the parts of a street while it is made, in coordinates along and across one of its roads."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.base.errors import DataError
from common.simulate.assemblies import ASSEMBLIES, MOVING
from common.simulate.shapes import BOX, Part, placed
from common.simulate.street import KERB, Patch

LAST_INSTANCE = 0xFFFF
GOLDEN = (5**0.5 - 1) / 2
"""Steps of this size round the unit interval land more evenly than steps of any other."""


@dataclass
class Builder:
    """A street in the making: what draws everything random about it, and its solids, ground and instance ids so far.

    `busy` is how many times as many rare things there are as usual, see `SimulationSettings`;
    `drawn` has the last even draw of each kind.
    """

    generator: np.random.Generator
    busy: float = 1.0
    parts: list[Part] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    instances: int = 0
    drawn: dict[str, float] = field(default_factory=dict)

    def even(self, kind: str) -> float:
        """The next number in 0..1 for one kind of decision; however few are drawn, they fill the interval evenly.

        Independent draws would leave out some classes on one street and crowd others: what one decides by these
        numbers happens as often as it should on every street.
        """
        last = self.drawn.get(kind)
        self.drawn[kind] = float(self.generator.random()) if last is None else (last + GOLDEN) % 1
        return self.drawn[kind]

    def one_of(self, kind: str, shares: Sequence[float]) -> int:
        """Index of the next choice of a kind; each is drawn by its share, whatever the shares add up to."""
        reached = np.cumsum(shares) / np.sum(shares)
        return min(int(np.searchsorted(reached, self.even(kind), side="right")), len(shares) - 1)

    def rarely(self, kind: str, probability: float) -> bool:
        """Whether a rare thing happens that has this probability on a street that is not busy."""
        return self.even(kind) < self.busy * probability

    def scattered(self, kind: str, span: tuple[float, float], spacing: float) -> np.ndarray:
        """Random places of rare things, on average `spacing` metres apart on a street that is not busy, float64 [K]."""
        expected = self.busy * max(span[1] - span[0], 0.0) / spacing
        return self.generator.uniform(*span, int(expected + self.even(kind)))

    def new_instance(self) -> int:
        """The next instance id.

        Raises:
            DataError: they are used up.
        """
        if self.instances == LAST_INSTANCE:
            raise DataError(f"a street has more than {LAST_INSTANCE} instances; simulate fewer scans per sequence")
        self.instances += 1
        return self.instances


@dataclass(frozen=True)
class Side:
    """One side of a road: `along` it in metres from its origin, `out` from its middle line, metres.

    Attributes:
        builder: collects what is put here.
        origin: where along and out are 0, metres.
        heading: direction of along in quarter turns, 0 = x, 1 = y.
        left: whether out points to the left of the heading.
    """

    builder: Builder
    origin: tuple[float, float]
    heading: int
    left: bool

    @property
    def generator(self) -> np.random.Generator:
        """The builder's."""
        return self.builder.generator

    def place(self, along: float, out: float) -> tuple[float, float]:
        """World coordinates, metres."""
        aside = out if self.left else -out
        if self.heading == 0:
            return self.origin[0] + along, self.origin[1] + aside
        return self.origin[0] - aside, self.origin[1] + along

    def yaw(self, turn: float) -> float:
        """World yaw of something that is turned by so many radians from the traffic of this side.

        Traffic of the right side drives along, that of the left side against it.
        """
        return self.heading * np.pi / 2 + (np.pi if self.left else 0) + turn

    def patch(self, begin: float, end: float, inner: float, outer: float, raw: int) -> Patch:
        """A rectangle of ground."""
        (x0, y0), (x1, y1) = self.place(begin, inner), self.place(end, outer)
        return Patch(min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1), raw)

    def cover(self, *patches: Patch) -> None:
        """Lay ground over what is there."""
        self.builder.patches += patches

    def build(self, patch: Patch, bottom: float, top: float, remission: float, depth: float = 0.0) -> None:
        """Add a box over a rectangle."""
        self.builder.parts.append(raised(patch, bottom, top, remission, depth))

    def put(self, parts: list[Part], along: float, out: float, turn: float = 0.0) -> None:
        """Add an assembly that is no instance, such as a tree."""
        self.builder.parts += placed(parts, (*self.place(along, out), KERB), self.yaw(turn))

    def put_thing(
        self, raw: int, along: float, out: float, turn: float = 0.0, z: float = KERB, speed: float = 0.0
    ) -> None:
        """Add a thing of a class with an instance id of its own, under its moving label if it moves."""
        parts = ASSEMBLIES[raw](self.generator, MOVING[raw] if speed else raw)
        place, instance = (*self.place(along, out), z), self.builder.new_instance()
        self.builder.parts += placed(parts, place, self.yaw(turn), instance, speed)


def raised(patch: Patch, bottom: float, top: float, remission: float, depth: float = 0.0) -> Part:
    """A box over a rectangle of ground."""
    centre = ((patch.west + patch.east) / 2, (patch.south + patch.north) / 2, (bottom + top) / 2)
    half = ((patch.east - patch.west) / 2, (patch.north - patch.south) / 2, (top - bottom) / 2)
    return Part(BOX, centre, half, patch.raw, remission, depth)
