"""Whichever process is killed, the same command completes the sweep; its results are the same."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.sweep.status import look
from reasonrl.sweep.verdict import ALIVE
from reasonrl.util.progress import Progress
from tests.helpers.configs import small_config
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.conftest import WAIT, log_in, outcome, short, sweep_of, train, wait_until

# Of a job's: ours, what starts it, the site's script, and the daemons of its step and its script.
VICTIMS = ("python", "srun", "script", "step", "batch")


@pytest.fixture
def own(
    slurm: Cluster,  # noqa: ARG001 (skips where there is none)
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    """A cluster of its own: what is killed here leaves nodes that take no more jobs."""
    with cluster(tmp_path_factory.mktemp("c"), nodes=2, cpus=4) as running:
        log_in(running, monkeypatch)
        yield running


@pytest.mark.slow
def test_whatever_is_killed_the_same_command_completes_the_sweep(
    own: Cluster, project: Path, faults: Path, tmp_path: Path
) -> None:
    matrix = ["algorithm=sft", f"seed=range(0,{len(VICTIMS)})", "hydra.launcher.mem_gb=1"]
    own.run("scontrol", "update", "PartitionName=high", "State=DOWN")
    train(project, *matrix)
    sweep = sweep_of(project)
    names = {short(member.name): member.name for member in sweep.runs}
    for name in names.values():
        (faults / name).write_text("wait")  # in its midst
    own.run("scontrol", "update", "PartitionName=high", "State=UP")
    for name in names.values():
        own.wait((faults / f"{name}.waiting").exists, f"{name} has begun", WAIT)
    own.crash_controller()
    for seed, victim in enumerate(VICTIMS):
        kill(sweep.run(names[f"sft {seed}"]), victim)
    wait_until(sweep, lambda found: not {*ALIVE} & {*found.values()})

    assert "5 runs: 5 done" in train(project, *matrix, "hydra.launcher.wait=true")
    for seed in range(len(VICTIMS)):
        run = sweep.run(names[f"sft {seed}"])
        assert read_status(run).attempt == 2
        undisturbed = small_config(tmp_path / "undisturbed", "algorithm=sft", f"seed={seed}")
        assert outcome(run) == outcome(ensure_done(plan(undisturbed), Progress()))
    assert {finding.verdict for finding in look(sweep)} == {"done"}


def kill(run: RunFolder, victim: str) -> None:
    status = read_status(run)
    assert status is not None
    worker = psutil.Process(status.pid)
    job = worker.environ()["SLURM_JOB_ID"]
    doomed = [process for process in psutil.process_iter() if is_one(process, victim, job)]
    assert doomed
    if victim in ("step", "batch"):
        doomed.append(worker)  # which nobody would end: it waits
    for process in doomed:
        process.kill()


def is_one(process: psutil.Process, victim: str, job: str) -> bool:
    try:
        line = " ".join(process.cmdline())
        if victim in ("step", "batch"):
            return line.strip() == f"slurmstepd: [{job}.{victim.replace('step', '0')}]"
        named = {"python": "submitit.core._submit", "srun": "srun", "script": "slurm_script"}[
            victim
        ]
        name_or_line = process.name() if victim == "srun" else line
        return named in name_or_line and process.environ().get("SLURM_JOB_ID") == job
    except psutil.Error:  # it has ended
        return False
