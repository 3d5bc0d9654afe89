"""A cluster of several Ray nodes on this machine, and a teacher that takes its time, more of it on some nodes."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from tests.extend.toy_teacher import HeightTeacher

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SLOWNESS = "SLOWNESS_OF_THIS_NODE"
"""Environment variable of a node: how many times longer the teacher takes there."""

SLEEPING_TEACHER = "tests.shared.small_cluster:SleepingTeacher"
DEADLY_TEACHER, DEADLY_POINTS = "tests.shared.small_cluster:DeadlyTeacher", 20
OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory of each node, about the least that Ray takes."""

# Ray gives its workers a low priority, so that they starve on a busy machine.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


class SleepingTeacher(HeightTeacher):
    """Takes the seconds that its checkpoint names for every scan."""

    seconds: float

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "SleepingTeacher":
        teacher = cls()
        teacher.seconds = float(checkpoint.read_text()) * float(os.environ.get(SLOWNESS, "1"))
        return teacher

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        time.sleep(self.seconds)
        return super().targets(batch, layers, voxel_features)


class DeadlyTeacher(HeightTeacher):
    """Ends its process at a scan of very few voxels, as one that takes too much memory would."""

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        if len(batch.voxels) < DEADLY_POINTS:
            os._exit(1)
        return super().targets(batch, layers, voxel_features)


class DeadlyLoadingTeacher(HeightTeacher):
    """Ends its process before it is there."""

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "DeadlyLoadingTeacher":
        os._exit(1)


@contextmanager
def small_cluster(nodes: int) -> Iterator["Cluster"]:
    """A cluster with a head that does no work, and nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False} | small())
    try:
        for _ in range(nodes):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def small() -> dict[str, Any]:
    """Options of a node that takes little memory."""
    return {"object_store_memory": OBJECT_STORE}


def add_node(cluster: "Cluster", slowness: float = 1.0) -> Any:
    """Add a node with one core, on which teachers are so much slower."""
    return cluster.add_node(num_cpus=1, num_gpus=0, env_vars={SLOWNESS: str(slowness)}, **small())


def kill_node(cluster: "Cluster", node: Any) -> None:
    """End a node and its workers at once, as a machine that loses its power."""
    cluster.remove_node(node, allow_graceful=False)
