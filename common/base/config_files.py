"""Where the YAML file is that somebody names: the same name means the same file from every working folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

import common

PACKAGED = Path(common.__file__).resolve().parents[1] / "configs"
"""Configs that are installed with the program."""

NAME = Path("configs")
"""How paths of packaged configs begin in settings, wherever they are installed."""


def find_config(name: str | Path, kind: str = "", beside: Iterable[Path] = ()) -> Path | None:
    """The file or folder that is meant, None where there is none.

    Args:
        name: a path; or, without suffix and folder, the name of a file in the folder `kind` of configs: `full`. A
            relative path is looked up in the working folder, then in each folder of `beside`, and last, where it begins
            with `configs/`, among the packaged configs.
        kind: folder of configs: `datasets`, `experiments` or `teachers`.
        beside: folders of the files that say the name.
    """
    path = Path(name)
    places = [NAME / kind / f"{path}.yaml", PACKAGED / kind / f"{path}.yaml"] if is_bare(path) and kind else []
    places += [path, *(folder / path for folder in beside)]
    if path.parts[:1] == NAME.parts:
        places.append(PACKAGED.parent / path)
    return next((place for place in places if place.exists()), None)


def is_bare(path: Path) -> bool:
    """Whether it is a name such as `full` rather than a path."""
    return len(path.parts) == 1 and not path.suffix


def known_configs(kind: str) -> list[str]:
    """Names of the configs of a kind, in the working folder and packaged."""
    return sorted({path.stem for folder in (NAME, PACKAGED) for path in (folder / kind).glob("*.yaml")})


def lasting(path: Path, kind: str = "", beside: Iterable[Path] = ()) -> Path:
    """The path by which settings name a file so that they can be read from any working folder.

    Returns:
        `configs/...` for a packaged one, otherwise an absolute path; the path itself where there is no such file.
    """
    found = None if path.is_absolute() else find_config(path, kind, beside)
    if found is None:
        return path
    return NAME / found.resolve().relative_to(PACKAGED) if is_packaged(found) else found.absolute()


def is_packaged(path: Path) -> bool:
    """Whether a file is one of the configs that are installed with the program."""
    return path.resolve().is_relative_to(PACKAGED)


def same_config(one: object, other: object) -> bool:
    """Whether two texts in settings name the same file; those of earlier versions may be relative."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    return lasting(Path(one)) == lasting(Path(other))


def lasting_dataset(path: Path, info: ValidationInfo) -> Path:
    """`lasting` for a setting, looked up beside the YAML files that it was read from."""
    return lasting(path, "datasets", (info.context or {}).get("beside", ()))


DatasetFile = Annotated[Path, AfterValidator(lasting_dataset)]
"""A setting that names a dataset's YAML file: `semantic_kitti`, or a path."""
