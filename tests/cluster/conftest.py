"""One cluster for all tests of this folder: starting its processes takes most of their time."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.shared.small_cluster import add_node, small_cluster

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="package")
def shared_cluster() -> Iterator["Cluster"]:
    with small_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster) -> "Cluster":
    """A cluster of two working nodes at least."""
    for _ in range(2 - len(shared_cluster.worker_nodes)):
        add_node(shared_cluster)
    return shared_cluster
