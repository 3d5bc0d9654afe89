"""The program `polar-distill`: its list of commands, and which part of the project knows which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from polar_distill import COMMANDS, program, stage_one, stage_two
from tests.shared.reduced import command, command_named, succeed

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [name for listed in COMMANDS.values() for name in listed]

OWN_MEANING = {
    *(("render", "--cache"), ("view", "--cache"), ("compare", "--data")),
    *((name, "--set") for name in ("evaluate", "predict", "render")),
}
"""Options that do something else there than in other commands."""

HELP = """
import sys
from click.testing import CliRunner
from polar_distill import program
output = CliRunner().invoke(program, ["--help"]).output
assert "dump" in output and "compare" in output, output
loaded = {"torch", "numpy", "pydantic", "matplotlib", "common", "stage1_dump_teacher", "stage2_train_student"}
assert not loaded & set(sys.modules), loaded & set(sys.modules)
"""


def test_the_list_of_commands_teaches_the_order_of_work():
    text = succeed(command(program, "--help"))
    places = [text.index(f"{title}:") for title in COMMANDS]
    assert places == sorted(places)
    assert [next(iter(listed)) for listed in COMMANDS.values()] == [
        "demo",
        "new-dataset",
        "train-teacher",
        "info",
        "train",
        "sweep",
        "export",
    ]
    for listed in COMMANDS.values():
        for name, (_, line) in listed.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", text, re.MULTILINE), name


def test_the_list_of_commands_loads_nothing_else():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_command_is_there_and_explains_itself(name):
    found = command_named(program, name)
    assert found.help
    assert all(option.help for option in found.params if isinstance(option, click.Option))
    for example in re.findall(r"polar-distill (\S+)", found.help):
        assert example in NAMES, example
    assert "python -m stage" not in found.help


def test_each_stage_lists_its_own_commands():
    context = click.Context(program)
    of_one, of_two = set(stage_one.list_commands(context)), set(stage_two.list_commands(context))
    assert of_one | of_two | {"simulate", "convert-paris-lille"} == set(NAMES)
    assert not of_one & of_two
    assert {"dump", "verify", "doctor"} < of_one
    assert {"train", "compare", "demo"} < of_two


def test_an_unknown_command_is_a_message():
    result = command(program, "dmup")
    assert result.exit_code == 2
    assert "No such command 'dmup'" in result.output


@pytest.mark.parametrize("name", ["--device", "--set", "--cache", "--resume", "--data"])
def test_an_option_of_several_commands_has_one_default_and_one_help(name):
    options = [
        option
        for command in NAMES
        for option in command_named(program, command).params
        if name in option.opts and (command, name) not in OWN_MEANING
    ]
    assert len(options) > 1
    assert len({(option.help, str(option.default)) for option in options}) == 1


def imported(path: Path) -> set[str]:
    """First parts of the names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("common", {"stage1_dump_teacher", "stage2_train_student", "polar_distill", "tests"}),
        ("stage1_dump_teacher", {"stage2_train_student", "polar_distill", "tests"}),
        ("stage2_train_student", {"stage1_dump_teacher", "polar_distill", "tests"}),
    ],
)
def test_no_part_imports_what_it_must_not_know(room, others):
    files = sorted((REPOSITORY / room).rglob("*.py"))
    entry = REPOSITORY / room / "__main__.py"
    found = {str(path): imported(path) & others for path in files if path != entry}
    assert not {path: names for path, names in found.items() if names}
    if entry.is_file():
        assert imported(entry) & others <= {"polar_distill"}
