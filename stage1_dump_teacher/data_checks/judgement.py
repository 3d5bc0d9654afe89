"""What the numbers of a survey mean beside those of the scans that a teacher was trained on."""

from collections.abc import Iterator

from common.scans.label_map import LabelMap
from stage1_dump_teacher.data_checks.survey import POINT_LIMIT, Distribution, Survey
from stage1_dump_teacher.device_checks import Check

DENSITY_FACTOR, DISTANCE_FACTOR, REFLECTANCE_FACTOR = 4.0, 2.0, 3.0
"""How many times larger or smaller a number may be than where the teacher was trained."""

MORE_ORIGIN, MORE_DUPLICATES, MORE_OUTSIDE, MORE_CROWDED, MORE_UNLABELLED = 0.01, 0.02, 0.15, 0.05, 0.2
"""How much larger a share of points may be."""

OTHER_DEGREES = 36.0
GROUND_STEP = 0.3
"""Metres."""

EXPECTED_SHARE = 0.02
"""A class with this share of all points is seen in any fifty scans."""

LISTED = 6
OWN_TEACHER = "train a teacher on such scans (polar-distill train-teacher)"

DROP_ORIGIN = (
    "No surface is there: nothing came back. Leave them out with options.drop_origin: true (format: files), or remove "
    "them and their labels."
)
KEEP_ONE = "Keep one return of each beam, and one scan in a file; copies weigh twice in losses and metrics."
LARGER_VOLUME = f"They are seen as if they lay on its border. Take the volume below, and {OWN_TEACHER}."
MORE_POINTS = "A student learns from that many of each pillar. Take more bins, or raise student.max_points_per_pillar."

Line = tuple[str, Check]


def judged(found: Survey, usual: Survey, label_map: LabelMap) -> Iterator[Line]:
    """One line of the doctor's table for each thing that was measured; `usual` is what the teacher was trained on."""
    yield "points", points_line(found, usual)
    yield "origin", _share("at (0, 0, 0)", found.origin, usual.origin, MORE_ORIGIN, DROP_ORIGIN)
    yield "distance", distance_line(found, usual)
    yield "view", view_line(found, usual)
    yield "ground", ground_line(found, usual)
    yield "reflectance", reflectance_line(found, usual)
    twice, crowded = "lie exactly on another one", f"beyond {POINT_LIMIT} of their pillar"
    yield "duplicates", _share(twice, found.duplicates, usual.duplicates, MORE_DUPLICATES, KEEP_ONE)
    yield "grid", _share("outside the volume", found.outside, usual.outside, MORE_OUTSIDE, LARGER_VOLUME)
    yield "pillars", _share(crowded, found.crowded, usual.crowded, MORE_CROWDED, MORE_POINTS)
    if found.raw_ids:
        yield "labels", labels_line(found, usual, label_map)
        yield "label ids", ids_line(found, label_map)
        yield "classes", classes_line(found, label_map)


def points_line(found: Survey, usual: Survey) -> Check:
    """How dense the scans are."""
    density, dense = (survey.points * (1 - survey.origin) / survey.degrees for survey in (found, usual))
    text = f"{found.points:,.0f} a scan, {density:.0f} a degree (teacher: {usual.points:,.0f}, {dense:.0f})"
    next_step = f"Teachers are weaker on scans of another density: {OWN_TEACHER}."
    return _check(text, _within(density, dense, DENSITY_FACTOR), next_step)


def distance_line(found: Survey, usual: Survey) -> Check:
    """How far the sensor sees."""
    ours, theirs = found.distance.percentiles, usual.distance.percentiles
    text = f"half within {ours[50]:.1f} m, 95 % within {ours[95]:.1f} m (teacher: {theirs[50]:.1f}, {theirs[95]:.1f})"
    next_step = f"Check that coordinates are in metres; if they are, {OWN_TEACHER}, with the volume below."
    return _check(text, _within(ours[95], theirs[95], DISTANCE_FACTOR), next_step)


def view_line(found: Survey, usual: Survey) -> Check:
    """How much of the circle is seen."""
    text = f"{found.degrees:.0f} degrees of the circle (teacher: {usual.degrees:.0f})"
    next_step = f"A teacher of the other view can be used, but one that knows yours should be better: {OWN_TEACHER}."
    return _check(text, abs(found.degrees - usual.degrees) <= OTHER_DEGREES, next_step)


def ground_line(found: Survey, usual: Survey) -> Check:
    """How high the sensor is mounted."""
    known = "none" if usual.ground is None else f"{usual.ground:.2f} m"
    if found.ground is None:
        text = f"none found near the sensor (teacher: {known})"
        return _check(text, usual.ground is None, "Check that z points up, in metres.")
    text = f"at {found.ground:.2f} m (teacher: {known})"
    if usual.ground is None:
        return Check("ok", text)
    higher = found.ground - usual.ground
    what = f"The sensor is {abs(higher):.2f} m {'lower' if higher > 0 else 'higher'}; teachers see heights as they are"
    next_step = f"{what}: add {-higher:.2f} m to every z when you convert, or {OWN_TEACHER}, with the volume below."
    return _check(text, abs(higher) <= GROUND_STEP, next_step)


def reflectance_line(found: Survey, usual: Survey) -> Check:
    """Whether both count reflectances in the same unit."""
    ours, theirs = found.reflectance.percentiles, usual.reflectance.percentiles
    text = f"{_spread(found.reflectance)} (teacher: {_spread(usual.reflectance)})"
    if ours[0] == ours[100]:
        return _check(text, theirs[0] == theirs[100], f"There is none, and the teacher knows some: {OWN_TEACHER}.")
    scale = theirs[100] / ours[100] if ours[100] else 0.0
    next_step = (
        f"Set options.reflectance_scale: {scale:.2g} (format: files), or multiply with it when you convert."
        if scale > 0
        else f"The teacher knows none: set options.reflectance: null, or {OWN_TEACHER}."
    )
    return _check(text, _within(ours[99], theirs[99], REFLECTANCE_FACTOR), next_step)


def labels_line(found: Survey, usual: Survey, label_map: LabelMap) -> Check:
    """How much is labelled."""
    ours, theirs = found.unlabelled or 0.0, usual.unlabelled or 0.0
    nothing = {raw: share for raw, share in found.raw_ids.items() if label_map.learning_map.get(raw) == 0}
    most = [raw for raw in sorted(nothing, key=lambda raw: -nothing[raw]) if nothing[raw] > 0.01][:LISTED]
    named = ", ".join(f"{raw} ({nothing[raw]:.0%})" for raw in most)
    next_step = f"They teach nothing but what the teacher says. Check that no real class maps to 0: ids {named}."
    return _share("in labelled scans unlabelled", ours, theirs, MORE_UNLABELLED, next_step)


def ids_line(found: Survey, label_map: LabelMap) -> Check:
    """Whether the map lists every id."""
    unknown = {raw: share for raw, share in found.raw_ids.items() if raw not in label_map.learning_map}
    if not unknown:
        return Check("ok", f"{len(found.raw_ids)} seen, all in the map")
    text = "not in the map: " + ", ".join(f"{raw} ({share:.2%} of the points)" for raw, share in unknown.items())
    lines = "  ".join(f"`{raw}: 0`" for raw in sorted(unknown))
    return Check("problem", text, f"Add to learning_map, 0 to ignore or a class: {lines}")


def classes_line(found: Survey, label_map: LabelMap) -> Check:
    """Which classes are there."""
    seen = {label_map.learning_map.get(raw, 0) for raw in found.raw_ids}
    never = [label for label in range(1, len(label_map.classes)) if label not in seen]
    names = [label_map.names[label] for label in never]
    text = f"{len(label_map.classes) - 1 - len(never)} seen"
    text += f"; not in these scans: {', '.join(names)}" if never else ""
    shares = label_map.class_shares()
    expected = [label_map.names[label] for label in never if shares[label] > EXPECTED_SHARE]
    next_step = (
        f"{', '.join(expected)}: should be common by `content`. Correct learning_map, take such classes out, or count "
        "all labels: polar-distill class-frequencies."
    )
    return _check(text, not expected, next_step)


def _check(text: str, fine: bool, next_step: str) -> Check:
    return Check("ok", text) if fine else Check("note", text, next_step)


def _share(what: str, ours: float, theirs: float, allowed: float, next_step: str) -> Check:
    text = f"{ours:.1%} of the points {what} (teacher: {theirs:.1%})"
    return _check(text, ours - theirs <= allowed, next_step)


def _within(ours: float, theirs: float, factor: float) -> bool:
    return theirs / factor <= ours <= theirs * factor


def _spread(values: Distribution) -> str:
    low, middle, high = (values.percentiles[percent] for percent in (0, 50, 100))
    return f"{low:.3g} to {high:.3g}, half below {middle:.3g}"
