"""Things on a street, put together from boxes, cylinders and ellipsoids in metres.

Each is made around the origin on the ground with its front along x. Raw label ids are SemanticKITTI's; `moving`
variants are chosen by the caller through `raw`.
"""

from collections.abc import Callable

import numpy as np

from common.simulate.shapes import BOX, CYLINDER, ELLIPSOID, Part

CAR, BICYCLE, BUS, MOTORCYCLE, ON_RAILS, TRUCK, OTHER_VEHICLE = 10, 11, 13, 15, 16, 18, 20
PERSON, BICYCLIST, MOTORCYCLIST = 30, 31, 32
ROAD, PARKING, SIDEWALK, OTHER_GROUND, LANE_MARKING, TERRAIN = 40, 44, 48, 49, 60, 72
BUILDING, FENCE, OTHER_STRUCTURE, VEGETATION, TRUNK, POLE, SIGN, OTHER_OBJECT = 50, 51, 52, 70, 71, 80, 81, 99

MOVING = dict(
    zip((CAR, BICYCLIST, PERSON, MOTORCYCLIST, ON_RAILS, BUS, TRUCK, OTHER_VEHICLE), range(252, 260), strict=True)
)
"""Raw id of a class while it moves."""

LEAVES, HEDGE_LEAVES, MESH = 0.6, 0.15, 0.06
"""Mean depth of penetration of a crown, a hedge and a wire fence, metres."""

Generator = np.random.Generator


def car(generator: Generator, raw: int) -> list[Part]:
    """A car between small and estate: body, bonnet line, cabin, wheels."""
    length, width, height = generator.uniform((3.7, 1.65, 1.42), (4.8, 1.85, 1.65))
    paint = generator.choice((0.05, 0.09, 0.2, 0.4), p=(0.3, 0.35, 0.2, 0.15))
    middle = 0.55 * height
    cabin, roof, pillars = -0.06 * length, (middle + height - 0.12) / 2, (height - 0.12 - middle) / 2
    return [
        Part(BOX, (0, 0, (0.22 + middle) / 2), (length / 2, width / 2, (middle - 0.22) / 2), raw, paint),
        Part(ELLIPSOID, (0, 0, middle), (length / 2, width / 2, 0.16), raw, paint),
        Part(ELLIPSOID, (cabin, 0, middle), (0.36 * length, 0.46 * width, height - middle), raw, paint),
        Part(BOX, (cabin, 0, roof), (0.24 * length, 0.43 * width, pillars), raw, paint),
        Part(BOX, (-length / 2 - 0.005, 0, 0.5), (0.01, 0.26, 0.06), raw, 0.95),
        *_wheels(length * 0.31, width / 2 - 0.08, 0.31, raw),
    ]


def truck(generator: Generator, raw: int) -> list[Part]:
    """A lorry: cab, load, chassis, wheels."""
    length, width, height = generator.uniform((6.0, 2.1, 2.8), (9.5, 2.5, 3.6))
    paint = generator.uniform(0.15, 0.5)
    front, shine = length / 2 - 0.9, generator.uniform(0.1, 0.4)
    return [
        Part(BOX, (front, 0, 0.4 + 0.36 * height), (0.9, 0.46 * width, 0.36 * height), raw, shine),
        Part(BOX, (-1.0, 0, 0.5 * (1.0 + height)), (length / 2 - 1.0, width / 2, (height - 1.0) / 2), raw, paint),
        Part(BOX, (0, 0, 0.75), (length / 2 - 0.3, 0.4, 0.2), raw, 0.1),
        *_wheels(length * 0.34, width / 2 - 0.15, 0.48, raw),
    ]


def van(generator: Generator, raw: int) -> list[Part]:
    """A caravan or trailer: a body on small wheels with a draw bar."""
    length, width, height = generator.uniform((3.6, 1.9, 1.9), (6.0, 2.3, 2.7))
    shine = generator.uniform(0.2, 0.5)
    return [
        Part(BOX, (0, 0, (0.45 + height) / 2), (length / 2, width / 2, (height - 0.45) / 2), raw, shine),
        Part(BOX, (length / 2 + 0.5, 0, 0.45), (0.55, 0.06, 0.05), raw, 0.2),
        *_wheels(0.3, width / 2 - 0.1, 0.32, raw),
    ]


def bus(generator: Generator, raw: int) -> list[Part]:
    """A city bus or, as on-rails, one car of a tram."""
    length = generator.uniform(10, 13)
    return [
        Part(BOX, (0, 0, 1.7), (length / 2, 1.27, 1.35), raw, generator.uniform(0.15, 0.4)),
        *_wheels(length * 0.32, 1.15, 0.48, raw),
    ]


def bicycle(generator: Generator, raw: int) -> list[Part]:
    """Two wheels, frame, saddle, handlebar."""
    shine = generator.uniform(0.15, 0.4)
    return [
        Part(ELLIPSOID, (0.52, 0, 0.34), (0.34, 0.03, 0.34), raw, shine, 0.04),
        Part(ELLIPSOID, (-0.52, 0, 0.34), (0.34, 0.03, 0.34), raw, shine, 0.04),
        Part(BOX, (0, 0, 0.58), (0.42, 0.03, 0.15), raw, shine, 0.03),
        Part(BOX, (-0.2, 0, 0.9), (0.13, 0.07, 0.04), raw, shine),
        Part(CYLINDER, (0.42, 0, 0.82), (0.025, 0.025, 0.2), raw, shine),
        Part(BOX, (0.42, 0, 1.0), (0.04, 0.28, 0.025), raw, shine),
    ]


def motorcycle(generator: Generator, raw: int) -> list[Part]:
    """Two wheels, tank and engine, seat, handlebar."""
    shine = generator.uniform(0.08, 0.4)
    return [
        Part(ELLIPSOID, (0.7, 0, 0.31), (0.31, 0.08, 0.31), raw, 0.1),
        Part(ELLIPSOID, (-0.7, 0, 0.31), (0.31, 0.1, 0.31), raw, 0.1),
        Part(BOX, (0, 0, 0.5), (0.42, 0.17, 0.24), raw, shine),
        Part(ELLIPSOID, (0.15, 0, 0.82), (0.35, 0.17, 0.17), raw, shine),
        Part(BOX, (-0.45, 0, 0.78), (0.38, 0.14, 0.07), raw, shine),
        Part(BOX, (0.48, 0, 1.02), (0.06, 0.36, 0.05), raw, shine),
        Part(BOX, (0.62, 0, 0.85), (0.08, 0.14, 0.2), raw, shine),
    ]


def person(generator: Generator, raw: int) -> list[Part]:
    """A person that stands or walks."""
    tall, cloth = generator.uniform(0.88, 1.08), generator.uniform(0.15, 0.6)
    stride = generator.uniform(0, 0.22)
    parts = [
        Part(CYLINDER, (stride, 0.09, 0.42), (0.08, 0.08, 0.42), raw, cloth),
        Part(CYLINDER, (-stride, -0.09, 0.42), (0.08, 0.08, 0.42), raw, cloth),
        Part(ELLIPSOID, (0, 0, 1.12), (0.15, 0.22, 0.38), raw, cloth),
        Part(CYLINDER, (stride / 2, -0.26, 1.08), (0.05, 0.05, 0.3), raw, cloth),
        Part(CYLINDER, (-stride / 2, 0.26, 1.08), (0.05, 0.05, 0.3), raw, cloth),
        Part(ELLIPSOID, (0, 0, 1.6), (0.11, 0.09, 0.14), raw, 0.4),
    ]
    return [
        part._replace(centre=(*part.centre[:2], part.centre[2] * tall), half=(*part.half[:2], part.half[2] * tall))
        for part in parts
    ]


def rider(generator: Generator, raw: int, seat: float) -> list[Part]:
    """A person that sits at a height of `seat` metres and leans forward."""
    cloth = generator.uniform(0.15, 0.6)
    return [
        Part(ELLIPSOID, (-0.05, 0, seat + 0.32), (0.2, 0.22, 0.36), raw, cloth),
        Part(ELLIPSOID, (0.08, 0, seat + 0.78), (0.12, 0.1, 0.15), raw, 0.4),
        Part(BOX, (0.22, 0.2, seat + 0.35), (0.22, 0.05, 0.06), raw, cloth),
        Part(BOX, (0.22, -0.2, seat + 0.35), (0.22, 0.05, 0.06), raw, cloth),
        Part(ELLIPSOID, (0.06, 0.14, seat - 0.3), (0.12, 0.08, 0.4), raw, cloth),
        Part(ELLIPSOID, (0.06, -0.14, seat - 0.3), (0.12, 0.08, 0.4), raw, cloth),
    ]


def bicyclist(generator: Generator, raw: int) -> list[Part]:
    """A bicycle and its rider; both carry the rider's label, as in SemanticKITTI."""
    return bicycle(generator, raw) + rider(generator, raw, 0.95)


def motorcyclist(generator: Generator, raw: int) -> list[Part]:
    """A motorcycle and its rider; both carry the rider's label."""
    return motorcycle(generator, raw) + rider(generator, raw, 0.85)


def tree(generator: Generator, clear_from: float = 1.2) -> list[Part]:
    """Trunk and a crown of several ellipsoids; the trunk is bare for at least about `clear_from` metres."""
    clear, thick, spread = generator.uniform((0, 0.06, 1.4), (1.4, 0.18, 3.0))
    clear = clear_from + clear
    parts = [Part(CYLINDER, (0, 0, (clear + 1) / 2), (thick, thick, (clear + 1) / 2), TRUNK, 0.31)]
    for _ in range(int(generator.integers(4, 8))):
        aside, angle = generator.uniform(0, 0.6 * spread), generator.uniform(0, 2 * np.pi)
        size = generator.uniform(0.5, 0.9) * spread
        height = clear + generator.uniform(0.3, 1.0) * spread
        centre = (aside * np.cos(angle), aside * np.sin(angle), height)
        parts.append(Part(ELLIPSOID, centre, (size, size, 0.75 * size), VEGETATION, 0.36, LEAVES))
    return parts


def bush(generator: Generator, size: float) -> list[Part]:
    """A bush about `size` metres across."""
    parts = []
    for _ in range(int(generator.integers(2, 5))):
        radius = size * generator.uniform(0.3, 0.55)
        x, y = generator.uniform(-0.3 * size, 0.3 * size, 2)
        tall = radius * generator.uniform(0.9, 1.5)
        parts.append(Part(ELLIPSOID, (x, y, 0.7 * tall), (radius, radius, tall), VEGETATION, 0.35, LEAVES / 2))
    return parts


def lamp() -> list[Part]:
    """A street lamp."""
    return [
        Part(CYLINDER, (0, 0, 0.4), (0.12, 0.12, 0.4), POLE, 0.25),
        Part(CYLINDER, (0, 0, 3.5), (0.07, 0.07, 3.5), POLE, 0.25),
    ]


def sign(generator: Generator) -> list[Part]:
    """A traffic sign on its pole; it faces -x."""
    top, size = generator.uniform(2.3, 2.9), generator.uniform(0.28, 0.42)
    return [
        Part(CYLINDER, (0, 0, top / 2), (0.04, 0.04, top / 2), POLE, 0.25),
        Part(BOX, (-0.06, 0, top - size), (0.02, size, size), SIGN, 0.7),
    ]


def litter_bin(generator: Generator) -> list[Part]:
    """A bin, bench or box: other-object."""
    half = generator.uniform((0.2, 0.2, 0.35), (0.6, 0.35, 0.6))
    return [Part(BOX, (0, 0, half[2]), tuple(half), OTHER_OBJECT, 0.3)]


def shelter() -> list[Part]:
    """A bus shelter or kiosk, open in front: other-structure."""
    return [
        Part(BOX, (-0.7, 0, 1.2), (0.04, 1.8, 1.2), OTHER_STRUCTURE, 0.36),
        Part(BOX, (0, 1.8, 1.2), (0.7, 0.04, 1.2), OTHER_STRUCTURE, 0.36),
        Part(BOX, (0, -1.8, 1.2), (0.7, 0.04, 1.2), OTHER_STRUCTURE, 0.36),
        Part(BOX, (0, 0, 2.45), (0.9, 1.9, 0.06), OTHER_STRUCTURE, 0.36),
    ]


def _wheels(axle: float, aside: float, radius: float, raw: int) -> list[Part]:
    return [
        Part(ELLIPSOID, (x, y, radius), (radius, 0.12, radius), raw, 0.08)
        for x in (-axle, axle)
        for y in (-aside, aside)
    ]


ASSEMBLIES: dict[int, Callable[[Generator, int], list[Part]]]
ASSEMBLIES = {CAR: car, TRUCK: truck, OTHER_VEHICLE: van, BUS: bus, ON_RAILS: bus, BICYCLE: bicycle, PERSON: person}
ASSEMBLIES |= {MOTORCYCLE: motorcycle, BICYCLIST: bicyclist, MOTORCYCLIST: motorcyclist}
"""What makes a thing of a class, with the label that it gets."""
