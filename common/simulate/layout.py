"""Lays out a whole street: blocks, side streets, both sides of each, traffic, and the sensor's way along it."""

import numpy as np

from common.simulate import assemblies as a
from common.simulate.builder import Builder, Side, raised
from common.simulate.plots import fill_plots, furnish_kerb, park_along
from common.simulate.shapes import Part, shapes_of
from common.simulate.street import KERB, Street

REACH = 95.0
"""How far a street goes on before, behind and beside the drive, metres; farther than a sensor sees."""

LANES = ((0.0, a.ROAD), (2.2, a.ROAD), (2.2, a.PARKING))
"""Width in metres and label of the strip that vehicles park on: none, part of the road, or marked for parking."""

LANE_SHARES = (0.6, 0.28, 0.12)

TURN_RADIUS, PATH_STEP = 7.0, 0.1
"""Of the sensor's way, metres."""


def make_street(length: float, generator: np.random.Generator, busy: float = 1.0) -> Street:
    """A random street along x with side streets along y, for a drive of `length` metres from the origin.

    `busy` is how many times as many rare things there are as usual.
    """
    builder = Builder(generator, busy)
    # Half widths of the street and of its side streets; blocks lie in the spans between these.
    half = generator.uniform(2.8, 4.4)
    crossings = _crossings(length, generator)
    halves = [float(generator.uniform(2.6, 4.0)) for _ in crossings]
    begin, end = -REACH, length + REACH
    blocks: list[Part] = []

    if generator.random() < 0.5:
        middle = Side(builder, (0, 0), 0, True)
        middle.cover(*(middle.patch(at, at + 3.5, -0.07, 0.07, a.LANE_MARKING) for at in np.arange(begin, end, 9.0)))
    edges = [begin, *[x for at, w in zip(crossings, halves, strict=True) for x in (at - w, at + w)], end]
    spans = list(zip(edges[0::2], edges[1::2], strict=True))
    depth = generator.uniform(20, 26)
    for left in (False, True):
        side = Side(builder, (0, 0), 0, left)
        lane, lane_raw = LANES[generator.choice(len(LANES), p=LANE_SHARES)]
        verge = float(generator.choice((0.0, generator.uniform(1.2, 3.0))))
        verge_raw = int(generator.choice((a.TERRAIN, a.OTHER_GROUND), p=(0.93, 0.07)))
        width = generator.uniform(1.6, 3.6)
        # From the middle outwards: the lane ends at the kerb, verge and pavement at the inner edge of the plots.
        kerb = half + lane
        inner = kerb + verge + width
        if lane:
            side.cover(*(side.patch(*span, half, kerb, lane_raw) for span in spans))
        for span in spans:
            inside = (span[0] + 1.8, span[1] - 1.8)
            ground = side.patch(*span, kerb, kerb + REACH, a.SIDEWALK)
            blocks.append(raised(ground, -0.5, KERB, 0.36))
            plots = side.patch(*inside, inner, kerb + REACH, a.TERRAIN)
            side.cover(ground, side.patch(*span, kerb, kerb + verge, verge_raw), plots)
            furnish_kerb(side, inside, kerb, width, verge)
            full = generator.uniform(0.1, 0.5)
            if lane:
                park_along(side, inside, half + 1.1, 0.0, full)
            fill_plots(side, inside, inner, inner + depth)
            _backdrop(side, inside, inner + depth)
        for place, (at, aside) in enumerate(zip(crossings, halves, strict=True)):
            for left_of_it, block in ((True, spans[place]), (False, spans[place + 1])):
                room = (block[1] - block[0]) / 2 - 1.8
                beside = Side(builder, (at, 0), 1, left_of_it)
                _line_side_street(beside, left, aside, room, inner + depth)
        _traffic(side, begin, end, half)
    path = _path(length, half, crossings, generator)
    return Street(shapes_of(blocks + builder.parts), len(blocks), builder.patches, path)


def _backdrop(side: Side, span: tuple[float, float], out: float) -> None:
    """Fences, trees and bushes behind the plots."""
    generator = side.generator
    for along in np.arange(span[0], span[1] - 8, 8.0):
        if generator.random() < 0.6:
            top = KERB + generator.uniform(1.2, 2.0)
            side.build(side.patch(along, along + 8, out, out + 0.1, a.FENCE), 0, top, 0.3)
    for along in np.arange(span[0] + 2, span[1] - 2, 3.5):
        if generator.random() < 0.6:
            side.put(a.bush(generator, generator.uniform(2, 4)), along, out + generator.uniform(1, 4))
        if generator.random() < 0.3:
            side.put(a.tree(generator), along, out + generator.uniform(2, 6))


def _crossings(length: float, generator: np.random.Generator) -> list[float]:
    """Where side streets cross, metres along the street."""
    crossings, at = [], -REACH + generator.uniform(40, 80)
    while at < length + REACH - 25:
        crossings.append(float(at))
        at += generator.uniform(55, 110)
    return crossings


def _line_side_street(side: Side, main_left: bool, half: float, room: float, start: float) -> None:
    """Parked cars and plots of so much `room`, metres, beyond the plots of the main street, which begin at `start`."""
    # Away from the main street; on its right, a side street's along runs towards it.
    span, near = (start, start + REACH - 35), (start - 22, start + 30)
    if not main_left:
        span, near = ((-end, -begin) for begin, end in (span, near))
    fill_plots(side, span, half + 1.8, half + min(20.0, room))
    park_along(side, near, half + 0.9, KERB, 0.2)


def _traffic(side: Side, begin: float, end: float, half: float) -> None:
    """Vehicles and riders that move along the main street; they begin anywhere and never change lane."""
    generator = side.generator
    speed = float(generator.uniform(6, 9))
    along = begin + generator.uniform(0, 30)
    rare = (a.TRUCK, a.BUS, a.ON_RAILS, a.OTHER_VEHICLE)
    # Oncoming traffic is gone after a while: it begins farther out along the drive.
    while along < end + (end - begin if side.left else 0):
        raw = a.CAR
        if side.builder.rarely("rare traffic", 0.04):
            raw = rare[side.builder.one_of("kind of rare traffic", (0.4, 0.2, 0.15, 0.25))]
        side.put_thing(raw, along, 0.5 * half, z=0.0, speed=speed)
        along += generator.uniform(35, 130)
    for along in side.builder.scattered("bicyclists", (begin, end), 1200):
        rides = generator.uniform(3, 6) if generator.random() < 0.8 else 0.0
        side.put_thing(a.BICYCLIST, along, half - 0.45, z=0.0, speed=rides)
    for along in side.builder.scattered("motorcyclists", (begin, end), 1500):
        side.put_thing(a.MOTORCYCLIST, along, half - 0.9, z=0.0, speed=speed)


def _path(length: float, half: float, crossings: list[float], generator: np.random.Generator) -> np.ndarray:
    """The sensor's way: along the right lane, and at one crossing perhaps to the left or right."""
    steps = np.arange(0, length + 2, PATH_STEP)
    lane = -half / 2
    weave = 0.25 * np.sin(steps / generator.uniform(9, 15) + generator.uniform(0, 6))
    path = np.stack((steps, lane + weave), axis=1)
    choices = [at for at in crossings if max(15, length - 60) < at < length - 20]
    if not choices or generator.random() < 0.5:
        return path
    at, turn = float(generator.choice(choices)), float(generator.choice((-1, 1)))
    before = path[steps <= at - TURN_RADIUS]
    angles = np.arange(0, np.pi / 2, PATH_STEP / TURN_RADIUS)
    corner, level = before[-1]
    bend = np.stack((corner + TURN_RADIUS * np.sin(angles), level + turn * TURN_RADIUS * (1 - np.cos(angles))), axis=1)
    rest = np.arange(PATH_STEP, REACH - 30, PATH_STEP)
    after = np.stack((np.full(len(rest), bend[-1, 0]), bend[-1, 1] + turn * rest), axis=1)
    return np.concatenate((before, bend, after))
