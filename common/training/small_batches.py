"""Batches too small to train on: a batch norm needs two values of each channel to take statistics of."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from common.base.errors import TrainingError
from common.scans.scan_id import ScanId

TOO_FEW_VALUES = "Expected more than 1 value per channel"
"""How PyTorch begins to say so; `common.training.shared_batch_norm` does likewise."""


@contextmanager
def naming_small_batches(scans: Iterable[ScanId]) -> Iterator[None]:
    """Context of a forward pass in training.

    Raises:
        TrainingError: a batch norm had a single value; names the scans of the batch.
    """
    try:
        yield
    except ValueError as error:
        if TOO_FEW_VALUES not in str(error):
            raise
        raise TrainingError(
            f"a batch of scans {', '.join(map(str, scans)) or 'of other processes'} cannot be trained on: a batch norm "
            "found one value where it needs two, such as a scan of a single point, or a map of a single cell. Move "
            "such scans out of the dataset, or give a larger batch_size or grid; the last saved state is intact."
        ) from error
