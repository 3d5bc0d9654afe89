"""Collects the parts of a street while it is made, in coordinates along and across one of its roads."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from common.base.errors import DataError
from common.simulate.assemblies import MOVING
from common.simulate.shapes import Part, placed
from common.simulate.street import KERB, Patch

LAST_INSTANCE = 0xFFFF


@dataclass
class Builder:
    """A street in the making.

    Attributes:
        generator: of everything random about the street.
        busy: how many times as many rare things as usual, see `SimulationSettings`.
        parts: solids so far.
        patches: ground so far.
        instances: how many instance ids are given out.
    """

    generator: np.random.Generator
    busy: float = 1.0
    parts: list[Part] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    instances: int = 0

    def rarely(self, probability: float) -> bool:
        """Whether a rare thing happens that has this probability on a street that is not busy."""
        return bool(self.generator.random() < self.busy * probability)

    def scattered(self, span: tuple[float, float], spacing: float) -> np.ndarray:
        """Random places of rare things, on average `spacing` metres apart on a street that is not busy, float64 [K]."""
        expected = self.busy * max(span[1] - span[0], 0.0) / spacing
        return self.generator.uniform(*span, self.generator.poisson(expected))

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
        origin: where along and out are 0, metres.
        heading: direction of along in quarter turns, 0 = x, 1 = y.
        left: whether out points to the left of the heading.
    """

    origin: tuple[float, float]
    heading: int
    left: bool

    def place(self, along: float, out: float) -> tuple[float, float]:
        """World coordinates, metres."""
        aside = out if self.left else -out
        if self.heading == 0:
            return self.origin[0] + along, self.origin[1] + aside
        return self.origin[0] - aside, self.origin[1] + along

    def yaw(self, turn: float = 0.0) -> float:
        """World yaw of something that points along the traffic of this side (the right side drives along)."""
        return self.heading * np.pi / 2 + (np.pi if self.left else 0) + turn

    def patch(self, begin: float, end: float, inner: float, outer: float, raw: int) -> Patch:
        """A rectangle of ground."""
        (x0, y0), (x1, y1) = self.place(begin, inner), self.place(end, outer)
        return Patch(min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1), raw)

    def box(self, begin: float, end: float, inner: float, outer: float, bottom: float, top: float,
            raw: int, remission: float, depth: float = 0.0) -> Part:  # fmt: skip
        """A box along the axes of the road."""
        patch = self.patch(begin, end, inner, outer, raw)
        centre = ((patch.west + patch.east) / 2, (patch.south + patch.north) / 2, (bottom + top) / 2)
        half = ((patch.east - patch.west) / 2, (patch.north - patch.south) / 2, (top - bottom) / 2)
        return Part(0, centre, half, raw, remission, depth)


Assembly = Callable[..., list[Part]]


def put(builder: Builder, side: Side, parts: list[Part], along: float, out: float, *, turn: float = 0.0,
        z: float = KERB) -> None:  # fmt: skip
    """Add an assembly that is no instance, such as a tree."""
    builder.parts += placed(parts, *side.place(along, out), z, side.yaw(turn))


def put_thing(builder: Builder, side: Side, assembly: Assembly, raw: int, along: float, out: float, *,
              turn: float = 0.0, z: float = KERB, speed: float = 0.0) -> None:  # fmt: skip
    """Add an assembly with an instance id of its own, under its moving label if it moves."""
    parts = assembly(builder.generator, MOVING[raw] if speed else raw)
    builder.parts += placed(parts, *side.place(along, out), z, side.yaw(turn), builder.new_instance(), speed)
