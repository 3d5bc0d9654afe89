"""The comparison page in a real browser: it needs no network, its script works, and it shows something."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from common.targets.store import ViewSet
from stage2_train_student.__main__ import main
from tests.shared.browser import Visit, screenshot, visit
from tests.shared.made_up_runs import NAMES, write_evaluation, write_run
from tests.shared.reduced import command, succeed

USED = """<script>
function click(element) { element.dispatchEvent(new MouseEvent("click", { bubbles: true })); }
const miou = [...document.querySelectorAll("#summary thead button")].find((one) => one.textContent === "mIoU, %");
click(miou);
click(document.querySelectorAll("#classes thead button")[1]);
click(document.querySelectorAll("#classes thead button")[1]);
click(document.querySelector('.legend button[data-experiment="1"]'));
const chart = document.querySelector(".chart");
const box = chart.querySelector("svg").getBoundingClientRect();
const middle = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
chart.querySelector("svg").dispatchEvent(new PointerEvent("pointermove", middle));
document.documentElement.dataset.sideways = document.documentElement.scrollWidth > window.innerWidth;
</script></body>"""
"""A reader who sorts two tables, hides an experiment and points at the middle of a chart."""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of three experiments, two seeds each."""
    root = tmp_path_factory.mktemp("comparison")
    for name, miou in (("baseline", 0.4), ("full", 0.6), ("logit", 0.5)):
        for seed in range(2):
            folder = write_run(
                root / "runs" / name / f"seed{seed}", name=name, seed=seed, miou=miou + 0.01 * seed, seen=ViewSet()
            )
            write_evaluation(folder, miou + 0.01 * seed, miou + 0.3)
    succeed(command(main, "compare", root / "runs", "--out", root / "comparison.html"))
    return root / "comparison.html"


@pytest.fixture(scope="module")
def used(page, tmp_path_factory) -> Visit:
    """The page after `USED`."""
    copy = tmp_path_factory.mktemp("used") / "page.html"
    copy.write_text(page.read_text().replace("</body>", USED))
    return visit(copy, tmp_path_factory.mktemp("profile"))


def element(document: str, start: str, end: str) -> str:
    """What lies between two marks that occur."""
    _, found, rest = document.partition(start)
    assert found, f"{start} is not in the document"
    return rest.partition(end)[0]


def first_cells(document: str, section: str) -> list[str]:
    """Text of the first cell of each row of a section's table, in order."""
    body = element(element(document, f'id="{section}"', "</section>"), "<tbody>", "</tbody>")
    return [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall("<tr><th.*?</th>", body, re.DOTALL)]


def test_the_page_refers_to_nothing_outside_itself(page):
    text = page.read_text()
    assert not re.search(r"(https?:)?//[a-z0-9]+\.", text, re.IGNORECASE)
    assert not re.search(r"<(script|iframe|object|embed)[^>]*\ssrc", text)
    assert "@import" not in text
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert "default-src 'none'" in text


def test_its_script_runs_without_a_complaint(used):
    assert used.console == []
    assert 'data-script="ran"' in used.document


def test_the_browser_would_tell_and_the_page_lets_nothing_in(page, tmp_path):
    """So that the test above means something."""
    broken = page.read_text().replace('"use strict";', '"use strict"; nowhere();')
    (tmp_path / "page.html").write_text(broken.replace("</body>", '<img src="http://localhost:9/x.png"></body>'))
    found = visit(tmp_path / "page.html", tmp_path / "profile")
    assert any("nowhere is not defined" in line for line in found.console)
    assert any("Content Security Policy" in line for line in found.console)
    assert "data-script" not in found.document


def test_headings_sort_tables(page, used):
    assert first_cells(page.read_text(), "summary") == ["baseline", "full", "logit"]
    assert first_cells(used.document, "summary") == ["full", "logit", "baseline"]
    assert 'aria-sort="descending"' in element(used.document, 'id="summary"', "</section>")
    rising = first_cells(used.document, "classes")
    assert set(rising) == {*NAMES, "mean"}
    assert rising[0] == NAMES[0]
    assert rising[-1] == NAMES[-1]


def test_a_hidden_experiment_leaves_the_charts_and_the_pointer_shows_values(used):
    series = re.findall(r'<g class="series[^"]*" data-experiment="(\d)"([^>]*)>', used.document)
    assert {number for number, more in series if "hidden" in more} == {"1"}
    assert {number for number, more in series if "hidden" not in more} == {"0", "2"}
    values = element(used.document, '<output class="values', "</output>")
    assert "hidden" not in values.partition(">")[0]
    assert "<span>step</span><span>30</span>" in values
    # By `write_run`: the third of six validations of 40.5 % in the mean of two seeds.
    expected = 40.5 * (1 - 0.6 * np.exp(-1.5))
    assert f"<span>baseline</span><span>{expected:.4g} %</span>" in values
    assert "<span>full</span>" not in values


@pytest.mark.parametrize("width", [1280, 420])
def test_it_shows_something_at_every_width(page, tmp_path, width):
    picture = tmp_path / "page.png"
    screenshot(page, tmp_path / "profile", picture, width, 1400)
    image = (255 * matplotlib.image.imread(picture)[..., :3]).astype(int)
    assert image.shape[:2] == (1400, width)
    # Ink, that of the grey notes too, in every quarter of the window, and some that is coloured: the dots, the table.
    dark = image.max(axis=2) < 140
    assert all(part.sum() > 500 for part in np.array_split(dark, 4))
    assert (np.ptp(image, axis=2) > 80).sum() > 500


def test_it_does_not_scroll_sideways_on_a_phone(page, tmp_path):
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", USED))
    found = visit(copy, tmp_path / "profile", "--window-size=420,900")
    assert 'data-sideways="false"' in found.document
