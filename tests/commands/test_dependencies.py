"""What the code imports is what the project declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("common", "stage1_dump_teacher", "stage2_train_student")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_every_package_that_is_imported_is_declared():
    words = [*PROJECT["dependencies"]]
    words += [
        word
        for extra in ("scatter", "remote", "cluster", "export", "formats")
        for word in PROJECT["optional-dependencies"][extra]
    ]
    declared = {normal(Requirement(word).name) for word in words}
    files = [REPOSITORY / "polar_distill.py", *(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))]
    modules = set().union(*map(imported, files))
    distributions = packages_distributions()
    undeclared = {
        module
        for module in modules - set(sys.stdlib_module_names) - {"polar_distill", *ROOMS}
        if not declared & {normal(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == set()


def test_torch_is_new_enough_to_load_weights_only():
    """CVE-2025-32434: before 2.6 a file could run code although `weights_only=True` was asked for."""
    [torch] = [Requirement(word) for word in PROJECT["dependencies"] if Requirement(word).name == "torch"]
    assert not torch.specifier.contains("2.5.1")
    assert torch.specifier.contains("2.6.0")
