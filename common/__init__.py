"""What both stages need and neither owns: data, geometry, views, targets on disk, settings, checkpoints, metrics."""

__version__ = "0.1.0"
