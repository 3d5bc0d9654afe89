"""Options that several commands of stage one share."""

from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from common.base.command_options import TEACHER_CONFIG, config_option, gathered, set_option
from common.base.config import load_settings
from common.base.config_files import find_config
from common.base.environment import processors
from common.scans.dataset import GridSettings
from stage1_dump_teacher.settings import DumpSettings


def load_dump_settings(config: Path, overrides: Sequence[str]) -> DumpSettings:
    """Settings of a dump from a YAML file; without one `--set dataset=NAME` means `cylinder3d_NAME`, if that is there.

    Raises SettingsError where they cannot be used.
    """
    own = None
    named = [Path(pair.partition("=")[2]).stem for pair in overrides if pair.startswith("dataset=")]
    if named and config == TEACHER_CONFIG:
        own = find_config(f"{TEACHER_CONFIG.stem}_{named[-1]}", "teachers")
    return load_settings(DumpSettings, own or config, overrides)


def shared_words(dataset: Path, grid: GridSettings, usual: GridSettings) -> list[str]:
    """Options with which the next command takes the same dataset, and the same grid where its own would be another.

    Every command takes SemanticKITTI without them.
    """
    name = dataset.stem if dataset.parent == Path("configs/datasets") else str(dataset)
    words = [] if name == "semantic_kitti" else ["--set", f"dataset={name}"]
    if grid != usual:
        text = yaml.safe_dump(grid.model_dump(mode="json"), default_flow_style=True, sort_keys=False, width=1000)
        words += ["--set", f"grid={text.strip()}"]
    return words


settings_options = gathered("settings", load_dump_settings, config_option, set_option)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=processors,
    show_default="processors",
    help="Files worked on at once.",
)
