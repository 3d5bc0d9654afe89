"""A real browser without a window, to open pages as a reader would."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Visit(NamedTuple):
    """What a browser gave: the document after its scripts ran, and what they wrote to the console."""

    document: str
    console: list[str]


def browser() -> str:
    """Path of a browser: the one that CHROMIUM names, or one that is installed.

    Without any the test fails where CI is set, and is skipped elsewhere.
    """
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        message = (
            f"CHROMIUM={named} is not a program" if named else f"no browser ({', '.join(NAMES)}); install chromium"
        )
        if os.environ.get("CI"):
            pytest.fail(f"{message}: the page was not opened", pytrace=False)
        pytest.skip(f"{message}: the page was not opened")
    return str(found)


def start_browser(profile: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the browser with an empty profile until it is done."""
    command = [browser(), *QUIET, f"--user-data-dir={profile}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def visit(page: Path, profile: Path, *words: str) -> Visit:
    """Open a page and read it back after its scripts ran."""
    logging = ("--enable-logging=stderr", "--v=0")
    done = start_browser(profile, *words, *logging, "--dump-dom", page.resolve().as_uri())
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def screenshot(page: Path, profile: Path, picture: Path, width: int, height: int) -> None:
    """Write what a window of that size shows as PNG."""
    start_browser(profile, f"--window-size={width},{height}", f"--screenshot={picture}", page.resolve().as_uri())
    assert picture.is_file(), "the browser took no screenshot"
