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
    bare = kind and len(path.parts) == 1 and not path.suffix
    places = [folder / kind / f"{path}.yaml" for folder in (NAME, PACKAGED) if bare]
    places += [path, *(folder / path for folder in beside)]
    if path.parts[:1] == NAME.parts:
        places.append(PACKAGED.parent / path)
    return next((place for place in places if place.exists()), None)


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
    real = found.resolve()
    return NAME / real.relative_to(PACKAGED) if real.is_relative_to(PACKAGED) else found.absolute()


def same_config(one: object, other: object) -> bool:
    """Whether two texts in settings name the same file; those of earlier versions may be relative."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    return lasting(Path(one)) == lasting(Path(other))


def _lasting_dataset(path: Path, info: ValidationInfo) -> Path:
    return lasting(path, "datasets", (info.context or {}).get("beside", ()))


DatasetFile = Annotated[Path, AfterValidator(_lasting_dataset)]
"""A setting that names a dataset's YAML file: `semantic_kitti`, or a path."""
