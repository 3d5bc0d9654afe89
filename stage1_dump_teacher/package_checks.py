"""What the doctor looks at in the environment: the interpreter, the packages, and how targets are written."""

import shlex
import sys
from importlib import metadata

import numpy as np
from packaging.requirements import Requirement

from common.base.environment import PROJECT, package_version
from stage1_dump_teacher.device_checks import Check

SPCONV = "spconv"


def check_python() -> Check:
    """spconv has wheels for the interpreter."""
    version = sys.version.split()[0]
    if sys.version_info < (3, 11):  # noqa: UP036 - this check is what tells a user who forced the installation
        return Check("problem", version, "Install the program in an environment of Python 3.11 to 3.13.")
    if sys.version_info >= (3, 14):
        return Check(
            "problem",
            version,
            "spconv has no wheels for it. Install the program in an environment of Python 3.11 to 3.13.",
        )
    return Check("ok", version)


def check_packages() -> Check:
    """Every required package is installed in a version that the project allows."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return Check(
            "note",
            f"{PROJECT} is not installed, so that versions were not checked",
            "Install it: `pip install .` in its folder.",
        )
    wrong: list[str] = []
    needed: list[str] = []
    found: list[str] = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        # Builds of spconv for other versions of CUDA do as well.
        name = installed_spconv() if requirement.name.startswith(SPCONV) else requirement.name
        version = package_version(name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} {version}")
            continue
        wrong.append(f"{name} is {version or 'missing'} ({requirement.specifier} needed)")
        needed.append(shlex.quote(f"{requirement.name if name == SPCONV else name}{requirement.specifier}"))
    if wrong:
        step = f"Run: pip install {' '.join(needed)}. Stage two alone runs without spconv."
        return Check("problem", "; ".join(wrong), step)
    return Check("ok", ", ".join(found))


def installed_spconv() -> str:
    """The build of spconv that is installed: spconv, spconv-cu118, spconv-cu126 ...; `spconv` without one."""
    names = (distribution.metadata["Name"] or "" for distribution in metadata.distributions())
    return next((name for name in names if name == SPCONV or name.startswith(f"{SPCONV}-cu")), SPCONV)


def check_zarr() -> Check:
    """A compressed array comes back from a file's bytes as targets do."""
    from common.targets.store import TargetEncoding
    from common.targets.store.members import read_members
    from common.targets.store.zarr_zip import zip_of_group

    values = np.random.default_rng(0).integers(-100, 100, (1000, 64)).astype(np.int8)
    back = read_members(zip_of_group({"probe": values}, {}, TargetEncoding())).array("probe")
    if not np.array_equal(back, values):
        return Check("problem", "an array came back changed", "Install the program in a new environment.")
    return Check("ok", "compressed an array with zstd and got it back")
