"""What lies beside a road: pavements with their furniture, parked cars, and plots with houses, parks and yards."""

import numpy as np

from common.simulate import assemblies as a
from common.simulate.builder import Side
from common.simulate.shapes import ELLIPSOID, Part
from common.simulate.street import KERB

Interval = tuple[float, float]


def furnish_kerb(side: Side, span: Interval, kerb: float, width: float, verge: float) -> None:
    """Lamps, signs, trees, bins and people on a pavement from `kerb` to `kerb + verge + width` metres out."""
    generator = side.generator
    begin, end = span
    along = begin + generator.uniform(2, 20)
    while along < end:
        side.put(a.lamp(), along, kerb + 0.4)
        along += generator.uniform(30, 60)
    for along in np.arange(begin + generator.uniform(1, 25), end, generator.uniform(30, 90)):
        side.put(a.sign(generator), along, kerb + 0.35)
    if verge or generator.random() < 0.25:
        along = begin + generator.uniform(3, 10)
        while along < end - 2:
            # Crowns hang over the road: vehicles pass below.
            side.put(a.tree(generator, 3.0), along, kerb + 0.5 * max(verge, 1.2))
            along += generator.uniform(10, 26)
    if verge:
        for along in generator.uniform(begin, end, int((end - begin) * generator.uniform(0, 0.12))):
            side.put(a.bush(generator, 0.8), along, kerb + verge / 2)
    for along in generator.uniform(begin, end, generator.poisson((end - begin) / 45)):
        side.put(a.litter_bin(generator), along, kerb + verge + width - 0.4)
    if end - begin > 20 and generator.random() < 0.2:
        side.put(a.shelter(), generator.uniform(begin + 3, end - 3), kerb + verge + width - 0.9, turn=-np.pi / 2)
    for along in side.builder.scattered("persons", span, 450):
        walks = generator.random() < 0.6
        out = kerb + verge + generator.uniform(0.3, width - 0.3)
        turn = 0.0 if generator.random() < 0.5 else np.pi
        side.put_thing(a.PERSON, along, out, turn=turn, speed=generator.uniform(0.9, 1.6) if walks else 0)
    for along in side.builder.scattered("cycles", span, 400):
        _park_two_wheels(side, along, kerb + verge + width - 0.35, generator.uniform(-0.2, 0.2))


def park_along(side: Side, span: Interval, middle: float, z: float, full: float) -> None:
    """Vehicles parked in a row, `middle` metres out; `full` is the share of places taken."""
    generator = side.generator
    along = span[0] + 3.0
    while along < span[1] - 3.5:
        if generator.random() < full:
            along += _park_one(side, along, middle + generator.uniform(-0.1, 0.1), z)
        else:
            along += 5.5


def fill_plots(side: Side, span: Interval, inner: float, outer: float) -> None:
    """Plots from one end of `span` to the other, `inner` to `outer` metres out."""
    generator = side.generator
    begin, end = span
    while end - begin > 6:
        size = min(generator.uniform(11, 26), end - begin)
        if end - begin - size < 6:
            size = end - begin
        chosen = side.builder.one_of("plots", (*_COMMON, *(side.builder.busy * share for share in _RARE)))
        _PLOTS[chosen](side, (begin, begin + size), inner, outer)
        begin += size


def _house(side: Side, span: Interval, inner: float, outer: float) -> None:
    """A house in its garden, with a boundary to the pavement and a drive."""
    generator = side.generator
    begin, end = span
    front = inner + generator.uniform(4, 12)
    left, right = begin + generator.uniform(0.5, 3), end - generator.uniform(3, 5)
    if right - left > 4:
        _building(side, (left, right), front, min(front + generator.uniform(7, 11), outer))
    drive = end - 2.8
    side.cover(side.patch(drive, end - 0.2, inner, front + 6, a.PARKING))
    if generator.random() < 0.6:
        side.put_thing(a.CAR, drive + 1.3, inner + generator.uniform(2.6, 5), turn=np.pi / 2)
    _boundary(side, (begin, drive), inner)
    _garden(side, (begin, drive), inner, front, 0.16)
    if generator.random() < 0.8:
        depth = float(generator.choice((0.0, a.MESH)))
        wall = side.patch(end - 0.1, end, inner, outer, a.FENCE)
        side.build(wall, 0, KERB + generator.uniform(0.9, 1.9), 0.3, depth)


def _row(side: Side, span: Interval, inner: float, outer: float) -> None:
    """Buildings wall to wall, close to the pavement."""
    front = inner + side.generator.uniform(0, 5)
    side.cover(side.patch(*span, inner, front, a.SIDEWALK))
    _building(side, span, front, min(front + 11, outer))


def _park(side: Side, span: Interval, inner: float, outer: float) -> None:
    """Grass with small rises, trees and bushes."""
    generator = side.generator
    _garden(side, span, inner, outer, 0.11)
    for along in generator.uniform(*span, int(generator.integers(1, 4))):
        x, y = side.place(along, generator.uniform(inner + 4, outer))
        half = generator.uniform((2.0, 2.0, 0.25), (4.0, 4.0, 0.7))
        side.builder.parts.append(Part(ELLIPSOID, (x, y, KERB), tuple(half), a.TERRAIN, 0.4))
    for along in generator.uniform(*span, int(generator.integers(0, 3))):
        side.put(a.litter_bin(generator), along, inner + generator.uniform(0.6, 2), turn=np.pi / 2)
    if generator.random() < 0.6:
        _boundary(side, span, inner)


def _car_park(side: Side, span: Interval, inner: float, outer: float) -> None:
    """Parked vehicles side by side."""
    generator = side.generator
    deep = min(inner + 12, outer)
    side.cover(side.patch(*span, inner, deep, a.PARKING))
    for out in (inner + 3.0, inner + 9.0):
        for along in np.arange(span[0] + 1.5, span[1] - 1.4, 2.8):
            if out < deep - 2.6 and generator.random() < 0.4:
                turn = np.pi / 2 * generator.choice((-1, 1)) + generator.normal(0, 0.03)
                side.put_thing(a.CAR, along, out, turn=turn)
    _boundary(side, span, deep + 0.3)


def _square(side: Side, span: Interval, inner: float, outer: float) -> None:
    """A paved yard (other-ground) with people, cycles, and something that stands about."""
    generator = side.generator
    side.cover(side.patch(*span, inner, inner + 9, a.OTHER_GROUND))
    for along in side.builder.scattered("persons on squares", (span[0] + 1, span[1] - 1), 60):
        side.put_thing(a.PERSON, along, inner + generator.uniform(1, 6), turn=generator.uniform(0, 2 * np.pi))
    if side.builder.rarely("cycles on squares", 0.25):
        for along in np.arange(span[0] + 1, min(span[0] + 6, span[1] - 1), 0.9):
            _park_two_wheels(side, along, inner + 2.2, np.pi / 2)
    middle = (span[0] + span[1]) / 2
    if side.builder.rarely("vehicles on squares", 0.2):
        raw = (a.OTHER_VEHICLE, a.TRUCK)[side.builder.one_of("kind of vehicle", (1, 1))]
        side.put_thing(raw, middle + 1.5, inner + 6.5)
    _building(side, span, inner + 9, min(inner + 18, outer))


_PLOTS = (_house, _row, _park, _car_park, _square)
_COMMON, _RARE = (0.43, 0.22, 0.32), (0.01, 0.02)
"""Shares of the plots; the last two are as rare as what is counted by `busy`."""


def _building(side: Side, span: Interval, front: float, back: float) -> None:
    """A building with bays, balconies and a base that stand out from its front."""
    generator = side.generator
    shine = generator.uniform(0.3, 0.6)
    top = generator.uniform(4.5, 12)
    side.build(side.patch(*span, front, back, a.BUILDING), 0, top, shine)
    side.build(side.patch(*span, front - 0.08, back, a.BUILDING), 0, KERB + 0.5, 0.8 * shine)
    for middle in generator.uniform(span[0] + 1, span[1] - 1, int(generator.integers(0, 4))):
        bottom = float(generator.choice((0.0, 2.6)))
        bay = side.patch(middle - 0.9, middle + 0.9, front - generator.uniform(0.3, 0.9), front, a.BUILDING)
        side.build(bay, bottom, bottom + 2.4, shine)


def _boundary(side: Side, span: Interval, out: float) -> None:
    """Between pavement and plot: a hedge, a wall, a wire fence, a row of bushes, or nothing."""
    generator = side.generator
    choice, top = generator.random(), KERB + generator.uniform(0.6, 1.7)
    if choice < 0.32:
        hedge = side.patch(*span, out, out + generator.uniform(0.5, 1.0), a.VEGETATION)
        side.build(hedge, KERB, top, 0.35, a.HEDGE_LEAVES)
    elif choice < 0.56:
        side.build(side.patch(*span, out, out + 0.15, a.FENCE), 0, top - 0.3, generator.uniform(0.25, 0.4))
    elif choice < 0.8:
        side.build(side.patch(*span, out, out + 0.05, a.FENCE), KERB, top, 0.3, a.MESH)
        for along in np.arange(span[0], span[1], 2.5):
            side.build(side.patch(along, along + 0.08, out, out + 0.08, a.FENCE), KERB, top + 0.1, 0.3)
    elif choice < 0.97:
        for along in np.arange(span[0] + 0.5, span[1], 1.1):
            side.put(a.bush(generator, generator.uniform(1.0, 2.0)), along, out + 0.9)


def _garden(side: Side, span: Interval, inner: float, outer: float, crowded: float) -> None:
    """Trees and bushes, `crowded` of them on a square metre."""
    generator = side.generator
    area = max(span[1] - span[0] - 1, 0) * max(outer - inner - 1.6, 0)
    for _ in range(generator.poisson(crowded * area)):
        along, out = generator.uniform((span[0] + 0.5, inner + 0.8), (span[1] - 0.5, outer - 0.8))
        assembly = a.tree(generator) if generator.random() < 0.2 else a.bush(generator, generator.uniform(0.7, 3.6))
        side.put(assembly, along, out)


def _park_one(side: Side, along: float, out: float, z: float) -> float:
    """Park one vehicle; returns how much of the row it takes, metres."""
    turn = side.generator.normal(0, 0.02)
    if side.builder.rarely("parked trucks", 0.01):
        side.put_thing(a.TRUCK, along + 2.5, out, turn=turn, z=z)
        return 11.0
    if side.builder.rarely("parked vans", 0.015):
        side.put_thing(a.OTHER_VEHICLE, along + 1, out, turn=turn, z=z)
        return 8.0
    if side.builder.rarely("parked motorcycles", 0.015):
        side.put_thing(a.MOTORCYCLE, along, out, turn=turn + 1.2, z=z)
        return 3.5
    side.put_thing(a.CAR, along, out, turn=turn, z=z)
    return 5.6


def _park_two_wheels(side: Side, along: float, out: float, turn: float) -> None:
    raw = (a.BICYCLE, a.MOTORCYCLE)[side.builder.one_of("kind of cycle", (0.65, 0.35))]
    side.put_thing(raw, along, out, turn)
