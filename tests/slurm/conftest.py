"""A real SLURM for the tests of this folder."""

import getpass
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, ClusterError, cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of two CPUs; an array has at most 101 tasks. Without SLURM the test is skipped."""
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
    slurm.run("scancel", f"--user={getpass.getuser()}")
