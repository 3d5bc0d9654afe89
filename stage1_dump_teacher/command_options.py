"""Options that several commands of stage one share."""

from pathlib import Path

import click

from common.base.command_options import config_option, gathered, set_option
from common.base.config import load_settings
from common.base.environment import processors
from stage1_dump_teacher.settings import DumpSettings


def load_dump_settings(config: Path, overrides: tuple[str, ...]) -> DumpSettings:
    """Settings of a dump from a YAML file.

    Raises:
        SettingsError: they cannot be used.
    """
    return load_settings(DumpSettings, config, overrides)


settings_options = gathered("settings", load_dump_settings, config_option, set_option)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=processors,
    show_default="processors",
    help="Files worked on at once.",
)
