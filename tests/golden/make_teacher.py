"""Write a Cylinder3D checkpoint in the published layout with the weights of the golden recipe.

    python -m tests.golden.make_teacher teacher.pt --size full

No published weights travel with this project; this file has their layout and size, random but reproducible values, and
the reference outputs in the golden folder.
"""

from pathlib import Path

import click
import torch

from tests.golden.golden_files import golden_weights


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(["full", "reduced"]), default="full", show_default=True)
def main(path: Path, size: str) -> None:
    """Write the golden teacher's weights to PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(golden_weights(f"teacher_{size}"), path)
    click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
