"""README, docs and CONTRIBUTING: links, commands, options, variables and files that they name exist."""

import re
from pathlib import Path

import click
import pytest

from polar_distill import COMMANDS, program
from tests.shared.reduced import command_named

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cache/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
NAMES = {name for listed in COMMANDS.values() for name in listed}
MADE_BY_RUNS = ("cache/", "runs/", "data/", "dataset/", "cases/")
"""How paths begin that commands write, or people bring."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


def code_of(text: str) -> str:
    """Code blocks, lines that end in a backslash joined, and what stands between backticks; one a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *(part.replace("\n", " ") for part in inline)]).replace("\\\n", " ")


@pages
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith(("https://", "http://")) or (page.parent / target).exists(), target


@pages
def test_commands_and_their_options_exist(page):
    for line in code_of(page.read_text()).splitlines():
        for name, rest in re.findall(r"(?:polar-distill|-m polar_distill(?: --)?) +([a-z][a-z-]*)([^#|`]*)", line):
            assert name in NAMES, line
            known = {
                option
                for one in command_named(program, name).params
                if isinstance(one, click.Option)
                for option in [*one.opts, *one.secondary_opts]
            }
            assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest)) <= known | {"--help"}, line


@pages
def test_make_targets_and_variables_exist(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??=", makefile, re.MULTILINE))
    code = code_of(page.read_text())
    for line in re.findall(r"\bmake +([a-z][^#`)\n]*)", code):
        words = line.split()
        assert words[0] in targets, line
        assert {word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)} <= variables, line


@pages
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`([\w./-]+/[\w./-]*)`", page.read_text()):
        if name.startswith(MADE_BY_RUNS) or name.startswith(("..", ".venv/", ".../")):
            continue
        assert (REPOSITORY / name).exists() or (page.parent / name).exists(), name


@pages
def test_modules_that_are_run_exist(page):
    for module in re.findall(r"python -m ([a-z_0-9.]+)", page.read_text()):
        path = REPOSITORY / module.replace(".", "/")
        files = (path.with_suffix(".py"), path / "__main__.py")
        assert module == "polar_distill" or any(file.is_file() for file in files), module
