"""Train a full-size teacher for a short while on the labelled sample scans: one whose features are not random.

    python -m tests.benchmarks.brief_teacher teacher.pt --steps 60

Sizes and errors of encodings depend on what features look like, and no published weights travel with this project. The
scans are rotated and flipped at random; the checkpoint is in the published layout.
"""

import time
from pathlib import Path

import click
import torch

from common.base.memory import keep_freed_memory
from common.networks.cylinder3d import Cylinder3D
from common.networks.published_weights import to_published
from common.scans.dataset import Dataset, voxelise_view
from common.scans.label_map import load_label_map
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import batch_scans
from common.scans.view import ViewPolicy, draw_view
from common.training.checkpoint import save_checkpoint
from common.training.segmentation_loss import segmentation_terms
from tests.golden.golden_files import REPOSITORY, scans_folder


def train_briefly(path: Path, steps: int, learning_rate: float) -> None:
    """Train a full-size teacher and write it to `path`, whole, every 20 steps and at the end."""
    torch.manual_seed(0)
    label_map = load_label_map(REPOSITORY / "configs/datasets/semantic_kitti.yaml")
    grid = PolarGrid.named("polarnet")
    scans = Dataset.open(scans_folder(), label_map).select(["train"]).scans
    sources = [Dataset.open(scans_folder(), label_map).read(scan) for scan in scans]
    weights = torch.from_numpy(label_map.class_weights())
    teacher = Cylinder3D(on_cpu=True).train()
    optimiser = torch.optim.Adam(teacher.parameters(), lr=learning_rate)
    for step in range(steps):
        start = time.perf_counter()
        row = step % len(scans)
        view = draw_view(ViewPolicy(), scans[row], 1 + step)
        batch = batch_scans([voxelise_view(sources[row], view, grid, label_map)], grid.shape)
        terms = segmentation_terms(teacher(batch).logits, batch.voxel_labels, weights)
        loss = terms["cross_entropy"] + terms["lovasz"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        click.echo(
            f"teacher step {step + 1}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.1f} s", err=True
        )
        if (step + 1) % 20 == 0 or step + 1 == steps:
            save_checkpoint(path, to_published(teacher))


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--steps", default=60, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
def main(path: Path, steps: int, learning_rate: float) -> None:
    """Train and write the teacher to PATH."""
    keep_freed_memory()
    train_briefly(path, steps, learning_rate)


if __name__ == "__main__":
    main()
