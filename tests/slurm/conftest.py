"""A real SLURM for the tests of this folder, and a project to submit sweeps from."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import reproducible
from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.status import look
from tests.helpers.configs import ROOT, SMALL
from tests.slurm.cluster import Cluster, ClusterError, cluster

HERE = Path(__file__).parent
FAULTS = HERE / "faults"
WAIT = 600.0  # seconds; of two cores a test may have but a part
SMALL_RUNS = [*SMALL, "runtime.outputs=outputs", "runtime.checkpoint_seconds=0"]  # after each step


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, of all that are collected."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


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
    """What a test leaves in the queue, above all one that fails, must not be the next one's.

    A cancelled job stays in the queue, as completing, until each of its nodes has reported its end.
    """
    yield
    slurm.run("scancel", "--me")
    slurm.wait(lambda: not slurm.run("squeue", "--noheader"), "the queue is empty", WAIT)


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a cluster: with the test's name in it, a socket's path would be too long."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture
def login(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    log_in(slurm, monkeypatch)
    return slurm


def log_in(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, and what jobs inherit, are as in a shell on the cluster's login node."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where orders are left for what runs: see faults/sitecustomize.py."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("REASONRL_FAULTS", str(folder))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code, to be edited."""
    folder = tmp_path / "project"
    for name in ("reasonrl", "hydra_plugins", "conf"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "train.py", folder)
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def train(project: Path, *overrides: str, check: bool = True) -> str:
    """What ``python train.py -m …`` prints."""
    command = [sys.executable, "train.py", "-m", *SMALL_RUNS, *overrides]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def sweep_of(project: Path) -> Sweep:
    (manifest,) = (project / "outputs" / "sweeps").glob("*/sweep.json")
    return Sweep.read(manifest.parent)


def short(name: str) -> str:
    """``sft 0``: algorithm and seed."""
    algorithm, *_, seed, _ = name.split("-")
    return f"{algorithm} {seed[1:]}"


def wait_until(sweep: Sweep, holds: Callable[[dict[str, str]], bool]) -> None:
    """Until this holds of the verdicts on the sweep's runs, by their names."""
    end = time.monotonic() + 3 * WAIT
    while not holds(verdicts := {r.member.name: str(r.verdict) for r in look(sweep)}):
        assert time.monotonic() < end, verdicts
        time.sleep(1)


def all_done(verdicts: dict[str, str]) -> bool:
    return {*verdicts.values()} == {"done"}


def outcome(run: RunFolder) -> dict[str, object]:
    """What a run has come to, without times."""
    files = [*run.evaluation.rglob("metrics.json"), *run.path.glob("policy/*.safetensors")]
    found: dict[str, object] = {str(f.relative_to(run.path)): f.read_bytes() for f in files}
    assert len(found) >= 2
    return found | {"metrics": reproducible(run.metrics)}
