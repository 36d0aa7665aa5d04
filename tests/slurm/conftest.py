"""A real SLURM for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, ClusterError, cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of two CPUs, arrays of up to 101 tasks. Skips where SLURM isn't installed."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        Cluster(folder)
    except ClusterError as error:
        pytest.skip(str(error))
    with cluster(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def empty_queue(slurm: Cluster) -> Iterator[None]:
    """What a test leaves in the queue, above all one that fails, must not hold up the next."""
    yield
    slurm.run("scancel", "--me")


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a cluster: with the test's name in it, a socket's path would be too long."""
    return tmp_path_factory.mktemp("c")
