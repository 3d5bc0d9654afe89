"""A client of a remote store that waits little, and one read with it."""

from common.targets.store.patience import Patience
from tests.targets.store.made_up_targets import SCANS, numbers, points_of

HASTY = Patience(connect=2.0, stall=0.5, request=10.0, retries=3, first_pause=0.01, longest_pause=0.05)
SCAN = SCANS[0]


def read_whole(store):
    """Numbers of one scan of the store."""
    return numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0])
