"""The command `simulate`."""

from pathlib import Path

import click
from tqdm import tqdm

from common.base.command_options import path_type, set_option
from common.base.commands import Command
from common.base.config import load_settings
from common.base.text import count_text
from common.simulate.dataset import SimulationSettings, all_scans, missing_scans, write_dataset


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option("--out", type=path_type, required=True, help="Folder that gets sequences/.")
@click.option("--config", type=path_type, help="Settings, a YAML file; without it the defaults.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Processes that simulate.")
@set_option
def main(out: Path, config: Path | None, jobs: int, overrides: tuple[str, ...]) -> None:
    """Simulate LiDAR scans of made-up streets in the SemanticKITTI layout.

    A second run with the same settings writes exactly what is missing.

    \b
    Examples:
      polar-distill simulate --out data/simulated
      polar-distill simulate --out data/small --set sensor.beams=32 --set sensor.columns=512
      polar-distill simulate --out data/load --set scans="{00: 1000}" --set spacing=1 --jobs 2
    """
    settings = load_settings(SimulationSettings, config, overrides)
    total, missing = len(all_scans(settings)), len(missing_scans(settings, out))
    if missing:
        for _ in tqdm(write_dataset(settings, out, jobs), total=missing, desc="simulate", unit="scan"):
            pass
    sequences = count_text(len(settings.scans), "sequence")
    click.echo(f"{out}: {count_text(total, 'scan')} in {sequences}, {missing} of them new")


if __name__ == "__main__":
    main()
