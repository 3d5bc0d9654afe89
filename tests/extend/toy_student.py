"""A student of one's own: a linear layer over the mean of each voxel's points, and a map of its pillars."""

from torch import nn

from common.scans.scan_batch import ScanBatch
from stage2_train_student.students.pillar_maps import pillar_rows
from stage2_train_student.students.student import Student, StudentOutputs, StudentSettings

CHANNELS = 4


class LinearStudent(Student):
    """Its only layer, `map`, has the grid's resolution halved, to meet the toy teacher's."""

    name = "linear"

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.points, self.classifier = nn.Linear(9, width), nn.Linear(width, classes)
        self.pillars = nn.Linear(width, CHANNELS)
        self.layers = {"map": CHANNELS}

    @classmethod
    def build(cls, settings: StudentSettings, grid_shape: tuple[int, int, int], classes: int) -> "LinearStudent":
        return cls(settings.options["width"], classes)

    def forward(self, batch: ScanBatch) -> StudentOutputs:
        features = self.points(batch.point_features)
        voxels = features.new_zeros(len(batch.voxels), features.shape[1])
        voxels = voxels.index_reduce(0, batch.point_voxel, features, "mean", include_self=False)
        radial, azimuth, _ = batch.grid_shape
        rows = pillar_rows(batch)[batch.voxel_pillar]
        dense = voxels.new_zeros(batch.scans * radial * azimuth, CHANNELS).index_add(0, rows, self.pillars(voxels))
        maps = dense.view(batch.scans, radial, azimuth, CHANNELS).permute(0, 3, 1, 2)
        return StudentOutputs(self.classifier(voxels), {"map": nn.functional.avg_pool2d(maps, 2)})
