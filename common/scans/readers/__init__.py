"""Point clouds in other people's files: `.bin`, `.npy`, `.pcd`, `.ply`, and PointCloud2 topics of ROS bags.

`read_cloud` reads any of them. `.pcd`, `.ply` and bags need what `pip install 'polar-distill[formats]'` installs.
"""

from common.scans.readers.bags import BAG_SUFFIXES, Bag, is_bag
from common.scans.readers.cloud import Cloud
from common.scans.readers.reading import POINT_COLUMNS, SUFFIXES, raw_ids, read_cloud, read_file, read_label_file

__all__ = [
    "BAG_SUFFIXES",
    "POINT_COLUMNS",
    "SUFFIXES",
    "Bag",
    "Cloud",
    "is_bag",
    "raw_ids",
    "read_cloud",
    "read_file",
    "read_label_file",
]
