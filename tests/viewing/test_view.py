"""The page of scans in 3D: what is packed into it, and what a reader sees and does with it in a real browser."""

import base64
import html
import json
import re
from typing import Any

import numpy as np
import pytest

from common.scans.dataset import open_dataset
from common.scans.scan_id import ScanId
from common.training.metrics import ConfusionMatrix
from polar_distill import program
from stage2_train_student import Predictor
from stage2_train_student.viewing.page import ViewedScan, page
from tests.shared.browser import Visit, visit
from tests.shared.cloud_writer import write_bag, write_ply
from tests.shared.reduced import DATASET, command, fail, succeed

SCANS = ("00/000001", "11/000000")
"""One with labels, one without."""

READER = """<script>
const seen = {};
canvas.setPointerCapture = () => {};
const press = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const button = (key) => document.querySelector(`#modes button[data-key="${key}"]`);
const pointer = (kind, at, more = {}) => canvas.dispatchEvent(
  new PointerEvent(kind, { clientX: at.x, clientY: at.y, pointerId: 1, bubbles: true, ...more }));
const pressTwice = (label) => document.querySelector(`#classes tr[data-label="${label}"]`).dispatchEvent(
  new MouseEvent("dblclick", { bubbles: true }));
function pixels(at = null) {
  frame();
  const size = at ? [1, 1] : [canvas.width, canvas.height], found = new Uint8Array(4 * size[0] * size[1]);
  const from = at ? [Math.round(at.x), canvas.height - 1 - Math.round(at.y)] : [0, 0];
  cloud.gl.readPixels(...from, ...size, cloud.gl.RGBA, cloud.gl.UNSIGNED_BYTE, found);
  return found;
}
const bright = () => pixels().reduce((count, value, at) => count + (at % 4 === 1 && value > 45), 0);
// A point that nothing hides, in the middle of the view.
function visiblePoint(fits) {
  for (let row = 0; row < state.scan.count; row += 1) {
    const at = placeOf(row);
    const inside = at.x > 320 && at.x < 900 && at.y > 300 && at.y < 700;
    if (inside && state.scan.shown[row] && fits(row) && pointAt(at) === row) return [row, at];
  }
  return [-1, null];
}
const { truth, opinions: [student, teacher] } = state.scan;
seen.start = { mode: state.mode.key, facts: part("facts").textContent };
const keys = () => [...document.querySelectorAll("#modes button")].map((one) => one.dataset.key);
seen.modes = keys();
seen.drawn = bright();

press(button("Classes truth"));
const road = data.classes.findIndex(({ name }) => name === "road");
pressTwice(road);
seen.roadShown = state.scan.shown.reduce((sum, one) => sum + one, 0);
const [roadRow, roadPlace] = visiblePoint(() => true);
seen.roadPixel = [...pixels(roadPlace)];
seen.roadDrawn = bright();
pressTwice(road);
seen.allShown = state.scan.shown.reduce((sum, one) => sum + one, 0);

press(button("Errors student"));
const [wrongRow, wrongPlace] = visiblePoint((row) => truth[row] !== 0 && truth[row] !== student.classes[row]);
seen.wrongPixel = [...pixels(wrongPlace)];
seen.words = part("ramp").textContent;
press(part("wrong"));
seen.wrongShown = state.scan.shown.reduce((sum, one) => sum + one, 0);
press(part("wrong"));
press(button("Errors student"));
seen.offAgain = state.mode.key;

pointer("pointermove", wrongPlace);
seen.tip = part("tip").innerText;
seen.tipHidden = part("tip").hidden;
const [tipBox, markBox] = ["tip", "mark"].map((id) => part(id).getBoundingClientRect());
const pointedAt = placeOf(state.pointed);
seen.tipOffset = [tipBox.left - wrongPlace.x, tipBox.top - wrongPlace.y];
seen.tipInside = tipBox.top >= 0 && tipBox.bottom <= innerHeight && tipBox.right <= innerWidth;
seen.markOffset = [markBox.left + markBox.width / 2 - pointedAt.x, markBox.top + markBox.height / 2 - pointedAt.y];
seen.pointed = {
  row: state.pointed, place: [...state.scan.positions.subarray(3 * wrongRow, 3 * wrongRow + 3)],
  truth: data.classes[truth[wrongRow]].name, student: data.classes[student.classes[wrongRow]].name,
  confidence: student.confidence[wrongRow], teacher: data.classes[teacher.classes[wrongRow]].name,
};
pointer("pointermove", { x: 640, y: 3 });
seen.nothingThere = part("tip").hidden;

const before = bright(), [yaw, distance] = [camera.yaw, camera.distance];
pointer("pointerdown", { x: 600, y: 500 });
pointer("pointermove", { x: 700, y: 460 }, { buttons: 1 });
seen.moving = state.moving;
pointer("pointerup", { x: 700, y: 460 });
seen.turned = yaw - camera.yaw;
pointer("pointerdown", { x: 600, y: 500 });
pointer("pointermove", { x: 640, y: 500 }, { buttons: 2 });
pointer("pointerup", { x: 640, y: 500 });
seen.target = camera.target.slice();
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -400, cancelable: true }));
seen.nearer = camera.distance / distance;
press(part("reset"));
seen.reset = camera.yaw === yaw && camera.distance === distance && camera.target[0] === 7;

press(button("Confidence student"));
press(part("next"));
seen.second = { mode: state.mode.key, modes: keys(),
  facts: part("facts").textContent, drawn: bright(), iou: part("heads").innerText };

HTMLCanvasElement.prototype.getContext = () => null;
begin();
seen.failure = part("failure").hidden ? "" : part("failure").textContent;
document.documentElement.dataset.seen = JSON.stringify(seen);
</script></body>"""
"""A reader who looks at roads alone, errors, a wrong point, turns, moves and zooms, and goes to the next scan."""


@pytest.fixture(scope="module")
def written(small_run, streets, street_cache) -> str:
    """The page with a teacher from a store, beside the run where the command puts it."""
    output = succeed(command(program, "view", small_run, "--data", streets, *SCANS, "--cache", street_cache))
    assert f"2 scans, 0.1 MB: {small_run / 'view.html'}" in output
    return (small_run / "view.html").read_text()


def contents(document: str) -> dict[str, Any]:
    """What a page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def array(text: str, dtype: Any = np.uint8) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_it_holds_every_point_with_what_is_said_about_it(written, small_run, streets):
    dataset, predictor = open_dataset(streets, DATASET), Predictor.load(small_run, "cpu")
    for name, packed in zip(SCANS, contents(written)["scans"], strict=True):
        source = dataset.read(ScanId.parse(name))
        points = np.array(packed["low"]) + np.array(packed["step"]) * array(packed["points"], "<u2").reshape(-1, 4)
        # In another order: the nearest point of the scan is the same one.
        apart = np.abs(points[:, None] - source.points[None]).max(axis=2)
        row = apart.argmin(axis=1)
        assert len(np.unique(row)) == len(source.points)
        assert apart.min(axis=1).max() <= max(packed["step"]) * 0.51
        classes, probabilities = predictor.predict(source.points)
        student, teacher = packed["opinions"]
        assert [student["who"], teacher["who"]] == ["student", "teacher"]
        np.testing.assert_array_equal(array(student["classes"]), classes[row])
        assert np.abs(array(student["confidence"]) / 255 - probabilities.max(axis=1)[row]).max() < 0.003
        if source.labels is None:
            assert packed["truth"] is student["iou"] is student["miou"] is None
            continue
        np.testing.assert_array_equal(array(packed["truth"]), source.labels[row])
        matrix = ConfusionMatrix.of(source.labels, classes, 20)
        assert student["miou"] == pytest.approx(matrix.mean_iou())
        assert student["right"] == pytest.approx(matrix.accuracy())
        np.testing.assert_allclose([np.nan if one is None else one for one in student["iou"]], matrix.iou())


def test_a_teacher_that_runs_says_what_its_store_says(written, small_run, streets, reduced_teacher, tmp_path):
    words = ["--data", streets, *SCANS, "--teacher", reduced_teacher, "--out", tmp_path / "live.html"]
    succeed(command(program, "view", small_run, *words))
    for live, stored in zip(
        contents((tmp_path / "live.html").read_text())["scans"], contents(written)["scans"], strict=True
    ):
        assert live["opinions"] == stored["opinions"]


def test_files_and_bags_are_shown_without_a_dataset(small_run, streets, tmp_path):
    points = open_dataset(streets, DATASET).read(ScanId.parse(SCANS[0])).points
    columns = dict(zip(("x", "y", "z", "intensity"), points.T.copy(), strict=True))
    write_ply(tmp_path / "cloud.ply", columns)
    write_bag(tmp_path / "drive.bag", {"/points": [columns] * 12})
    output = succeed(
        command(program, "view", small_run, tmp_path / "cloud.ply", tmp_path / "drive.bag", "--out", tmp_path / "page")
    )
    assert "11 scans" in output
    document = (tmp_path / "page").read_text()
    assert f"{tmp_path}/drive.bag, message 11</option>" in document
    first, *others = contents(document)["scans"]
    assert len(array(first["points"], "<u2")) == 4 * len(points)
    assert all(one == first for one in others)


def test_scans_in_which_nothing_came_back_are_left_out(small_run, tmp_path):
    (tmp_path / "a.bin").touch()
    assert "nothing came back" in fail(command(program, "view", small_run, tmp_path, "--out", tmp_path / "page"))
    np.ones((9, 4), np.float32).tofile(tmp_path / "b.bin")
    output = succeed(command(program, "view", small_run, tmp_path, "--out", tmp_path / "page"))
    assert f"note: left out, since nothing came back: {tmp_path}/a.bin" in output
    assert "1 scan," in output


def test_what_cannot_be_shown_is_refused_before_any_work(small_run, streets, reduced_teacher, tmp_path):
    both = ("--teacher", reduced_teacher, "--cache", tmp_path)
    assert "give one of them" in fail(command(program, "view", small_run, "--data", streets, SCANS[0], *both))
    assert "name it with --data" in fail(command(program, "view", small_run, tmp_path / "a.ply", "--cache", tmp_path))
    options = ("--data", streets, "--file-option", "reflectance=null")
    assert "not for scans of a dataset" in fail(command(program, "view", small_run, SCANS[0], *options))
    assert "Scans of a dataset need --data" in fail(command(program, "view", small_run, "00/000000"))
    assert "does not name a scan" in fail(command(program, "view", small_run, "--data", streets, "000000"))
    assert "no run here" in fail(command(program, "view", tmp_path, "--data", streets, SCANS[0]))


def test_names_are_quoted(semantic_kitti):
    scan = ViewedScan("</script><b>&", np.zeros((3, 4), np.float32), None, [])
    document = page('"><script>alert(1)</script>', [scan], semantic_kitti)
    assert "<b>" not in document
    assert "alert(1)</script>" not in document


@pytest.fixture(scope="module")
def seen(written, tmp_path_factory) -> dict[str, Any]:
    """What `READER` saw."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(written.replace("</body>", READER))
    words = ("--enable-unsafe-swiftshader", "--window-size=1280,900")
    found: Visit = visit(folder / "page.html", folder / "profile", *words)
    assert [line for line in found.console if "GL Driver Message" not in line] == []
    text = re.search(r'data-seen="([^"]*)"', found.document)
    assert text is not None, "the reader did not come to the end"
    return json.loads(html.unescape(text[1]))


def test_the_page_refers_to_nothing_outside_itself(written):
    assert not re.search(r"(https?:)?//[a-z0-9]+\.", written.partition("<script")[0])
    assert not re.search(r"<(script|iframe|object|embed|link)[^>]*\s(src|href)=\"(?!data:)", written)
    assert "default-src 'none'" in written


def test_it_begins_with_the_student(seen):
    assert seen["start"]["mode"] == "Classes student"
    assert "1,500 points · student" in seen["start"]["facts"]
    assert seen["drawn"] > 1000
    rows = {key.partition(" ")[0] for key in seen["modes"]}
    assert rows == {"Classes", "Errors", "Confidence", "Measured"}
    assert {"Classes truth", "Classes teacher", "Errors teacher", "Errors student ≠ teacher"} < set(seen["modes"])


def test_a_class_can_be_seen_alone_in_its_colour(seen, streets):
    labels = open_dataset(streets, DATASET).read(ScanId.parse(SCANS[0])).labels
    assert seen["roadShown"] == (labels == 9).sum()
    assert seen["allShown"] == len(labels)
    assert 0 < seen["roadDrawn"] < seen["drawn"]
    red, green, blue, _ = seen["roadPixel"]
    # (255, 0, 255), darkened by distance.
    assert red == blue > 90
    assert green < 5


def test_errors_are_red_and_can_be_seen_alone(seen, written):
    packed = contents(written)["scans"][0]
    truth, student = array(packed["truth"]), array(packed["opinions"][0]["classes"])
    red, green, _, _ = seen["wrongPixel"]
    assert red > 90
    assert green < red / 2
    assert seen["words"] == "rightwrongno label"
    assert seen["wrongShown"] == (truth != student).sum()
    assert seen["offAgain"] == "Classes truth"


def test_pointing_at_a_point_names_it(seen):
    tip, pointed = " ".join(seen["tip"].split()), seen["pointed"]
    assert pointed["row"] >= 0
    assert not seen["tipHidden"]
    assert seen["tipInside"]
    assert seen["tipOffset"][0] == pytest.approx(18, abs=1)
    assert seen["tipOffset"][1] < 15
    assert seen["markOffset"] == pytest.approx([0, 0], abs=1)
    x, y, z = pointed["place"]
    assert f"truth {pointed['truth']}" in tip
    assert f"student {pointed['student']} · {round(pointed['confidence'] / 2.55)} %" in tip
    assert f"teacher {pointed['teacher']}" in tip
    assert f"x {x:.2f} y {y:.2f} z {z:.2f} m" in tip
    assert seen["nothingThere"]


def test_the_scan_is_turned_moved_and_brought_nearer(seen):
    assert seen["turned"] == pytest.approx(0.6)
    assert seen["moving"]
    assert seen["target"][:2] != [7, 0]
    assert seen["nearer"] == pytest.approx(np.exp(-0.6))
    assert seen["reset"]


def test_the_next_scan_keeps_the_way_of_colouring_and_lacks_what_needs_labels(seen):
    second = seen["second"]
    assert second["mode"] == "Confidence student"
    assert not [key for key in second["modes"] if key in ("Classes truth", "Errors student")]
    assert second["facts"] == "1,500 points"
    assert second["drawn"] > 500
    assert "IoU" not in second["iou"]


def test_a_browser_without_webgl_says_so(seen):
    assert "no WebGL 2" in seen["failure"]
