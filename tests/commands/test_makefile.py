"""The Makefile: what `make help` promises exists, and what a user types reaches the commands unharmed."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from polar_distill import program
from tests.shared.reduced import command_named

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("dump-teacher", "train-student", "train-teacher", "sweep", "evaluate", "evaluate-teacher", "predict", "render"),
    *("doctor", "view"),
)


def make(*arguments: str) -> subprocess.CompletedProcess:
    # `make test DATA=...` passes its variables on to its children, and so to these runs, if they are not left out.
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def command_line(target: str, *variables: str) -> list[str]:
    """Words of the command that a target would run, the environment being set up."""
    done = make("-n", "-o", ".venv/.installed", target, *variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_help_is_the_default_and_lists_every_target():
    text = make().stdout
    assert text == make("help").stdout
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(COMMANDS) < set(targets)
    for target in targets:
        assert re.search(rf"^  {target} +\w", text, re.MULTILINE), target
    for variable in ("DATA", "TEACHER", "CACHE", "EXPERIMENT", "DEVICE", "SET", "RUN", "SPLIT", "OUT", "SEEDS", "PAGE"):
        assert re.search(rf"^  {variable} +\w", text, re.MULTILINE), variable


@pytest.mark.parametrize("target", COMMANDS[:-2])
def test_missing_variable_is_one_line_before_anything_is_set_up(target):
    done = make(target)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "DATA is not set" in done.stderr


def test_dump_needs_a_teacher():
    assert "TEACHER is not set" in make("dump-teacher", "DATA=dataset").stderr


def test_paths_and_settings_arrive_as_typed():
    words = command_line("dump-teacher", "DATA=/a b/it's", "TEACHER=t $$x.pt", "SET=views.count=4 layers=[up0e,up2e]")
    assert words[1:4] == ["-m", "polar_distill", "dump"]
    assert words[words.index("--data") + 1] == "/a b/it's"
    assert words[words.index("--teacher") + 1] == "t $x.pt"
    assert words[-4:] == ["--set", "views.count=4", "--set", "layers=[up0e,up2e]"]


def test_only_what_is_set_is_passed_on():
    words = command_line("train-student", "DATA=dataset", "DEVICE=")
    options = [word for word in words if word.startswith("--")]
    assert options == ["--data", "--experiment", "--cache", "--run"]
    assert "--resume" in command_line("train-student", "DATA=dataset", "RESUME=1")


def test_run_folder_follows_the_experiment():
    for experiment in ("vpd", "configs/experiments/vpd.yaml"):
        words = command_line("train-student", "DATA=dataset", f"EXPERIMENT={experiment}")
        assert words[words.index("--run") + 1] == "runs/vpd"
    words = command_line("predict", "DATA=dataset", "EXPERIMENT=vpd", "SPLIT=val 00")
    assert words[words.index("--out") + 1] == "runs/vpd/predictions"
    assert [words[row + 1] for row, word in enumerate(words) if word == "--split"] == ["val", "00"]


def test_each_scan_to_render_is_an_option_of_its_own():
    words = command_line("render", "DATA=dataset", "SCAN=08/000000 08/000100", "EXPERIMENT=vpd")
    assert [words[row + 1] for row, word in enumerate(words) if word == "--scan"] == ["08/000000", "08/000100"]
    assert words[words.index("--out") + 1] == "runs/vpd/pictures"
    assert "SCAN is not set" in make("render", "DATA=dataset").stderr


def test_scans_to_view_follow_the_run():
    words = command_line("view", "RUN=runs/a b", "SCAN=one.bin two.ply", "DATA=")
    assert words[3:7] == ["view", "runs/a b", "one.bin", "two.ply"]
    assert "--data" not in words
    assert "SCAN is not set" in make("view", "DATA=dataset").stderr


def test_weights_replace_the_run():
    words = command_line("evaluate", "DATA=dataset", "WEIGHTS=polar net.pt")
    assert words[words.index("--weights") + 1] == "polar net.pt"
    assert words[words.index("--experiment") + 1] == "full"
    assert "--run" not in words


@pytest.mark.parametrize("target", COMMANDS)
def test_every_option_exists(target):
    variables = ("DATA=x", "TEACHER=x", "SPLIT=val", "SET=a=1", "RESUME=1", "CONFIG=x", "SCAN=00/000000", "ZIP=a.zip")
    words = command_line(target, *variables, "RAY=auto")
    module, command = words[2:4]
    assert module == "polar_distill"
    known = {option for parameter in command_named(program, command).params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_a_sweep_and_its_comparison_share_a_folder():
    words = command_line("sweep", "DATA=dataset", "EXPERIMENTS=baseline full", "SEEDS=0 1", "JOBS=2")
    assert words[words.index("--experiments") + 1] == "baseline full"
    assert words[words.index("--seeds") + 1] == "0 1"
    assert words[words.index("--jobs") + 1] == "2"
    folder = words[words.index("--out") + 1]
    words = command_line("compare", "TEACHER=teacher.pt")
    assert words[words.index("compare") + 1] == folder
    assert "--teacher" not in words
    words = command_line("compare", "DATA=dataset", "TEACHER=teacher.pt", "SCAN=08/000000 08/000001", "RUNS=a b")
    assert words[words.index("compare") + 1 :][:2] == ["a", "b"]
    assert words[words.index("--teacher") + 1] == "teacher.pt"
    assert words.count("--scan") == 2
