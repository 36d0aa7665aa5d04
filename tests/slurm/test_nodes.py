"""Jobs of two nodes with two ranks each: how they work, stop, die, go on, and end.

Left alone they find what one process does. Where they are disturbed, what the ranks do is stood in
for: wherever a part of a job is hit, all of it ends, the verdict names the part, and the next
attempt goes on from what was saved, with any number of ranks.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.status import Finding, look
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, small_config
from tests.helpers.kill_and_resume import results
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import HERE, WAIT, all_done, sweep_of, train, wait_until

pytestmark = pytest.mark.slow

TWO_BY_TWO = ["nodes=2", "gpus_per_node=2", "mem_gb=3"]


@pytest.fixture
def stood_in_for(project: Path) -> None:
    shutil.copy(HERE / "stand_in.py", project / "reasonrl" / "pipeline" / "rank.py")


class Job:
    """A run of a sweep, and the job that makes it."""

    def __init__(self, cluster: Cluster, project: Path, *options: str) -> None:
        asks = [f"hydra.launcher.{option}" for option in (*TWO_BY_TWO, *options)]
        train(project, "algorithm=sample", "init=pretrained", *asks)
        self.cluster, self.sweep = cluster, sweep_of(project)
        self.run: RunFolder = self.sweep.run(self.sweep.runs[0].name)

    @property
    def finding(self) -> Finding:
        (finding,) = look(self.sweep)
        return finding

    @property
    def id(self) -> str:
        assert self.finding.job
        return self.finding.job

    def ranks(self, size: int = 4, restart: int = 0) -> list[dict[str, Any]]:
        """What the ranks write, once all have begun, and all have taken a step."""
        files = [self.run.path / f"rank-{rank}.json" for rank in range(size)]

        def begun() -> bool:
            if not all(file.exists() for file in files):
                return False
            said = [json.loads(file.read_text()) for file in files]
            return all((one["size"], one["restart"]) == (size, restart) for one in said)

        self.cluster.wait(begun, f"{size} ranks have begun", WAIT)
        return [json.loads(file.read_text()) for file in files]

    def forget(self) -> None:
        for file in self.run.path.glob("rank-*.json"):
            file.unlink()

    def saved(self) -> int:
        return int((self.run.path / "saved").read_text())

    def until(self, verdict: str) -> Finding:
        wait_until(self.sweep, lambda found: {*found.values()} == {verdict})
        return self.finding

    def resubmit(self, *options: str) -> None:
        self.forget()
        command = [sys.executable, "-m", "reasonrl.sweep", "resubmit", str(self.sweep.path)]
        subprocess.run([*command, *options, "--yes"], cwd=ROOT, check=True, capture_output=True)
        self.sweep = Sweep.read(self.sweep.path)

    def finish(self) -> None:
        (self.run.path / "finish").touch()
        wait_until(self.sweep, all_done)


@pytest.mark.usefixtures("login")
def test_expert_iteration_samples_what_one_process_does(project: Path, tmp_path: Path) -> None:
    ei = ["algorithm=ei", "init=pretrained", "algorithm.rounds=1", "algorithm.epochs=1"]
    ei += ["algorithm.num_samples_per_prompt=[4]"]
    train(project, *ei, *(f"hydra.launcher.{option}" for option in TWO_BY_TWO))
    alone = ensure_done(plan(small_config(tmp_path / "alone", *ei)), Progress())
    sweep = sweep_of(project)
    wait_until(sweep, all_done)
    (member,) = sweep.runs
    run = sweep.run(member.name)
    status = read_status(run)
    assert status is not None
    assert (status.state, status.attempt, run.path.name) == ("done", 1, alone.path.name)
    (attempt,) = json.loads(run.provenance.read_text())["attempts"]
    assert attempt["processes"] == 4
    assert not run.work.exists()
    assert not [*run.path.glob("rank-*.log")]
    assert results(run.path).keys() == results(alone.path).keys()
    ours, theirs = (pq.read_table(each.rollouts / "round-1.parquet") for each in (run, alone))
    assert ours.num_rows == 48
    drawn = [name for name in ours.column_names if name != "logprobs"]
    assert ours.select(drawn).equals(theirs.select(drawn))
    logprobs = (table["logprobs"].combine_chunks().values.to_numpy() for table in (ours, theirs))
    np.testing.assert_allclose(*logprobs, rtol=0, atol=1e-5)  # batches of other shapes round


@pytest.mark.usefixtures("stood_in_for")
def test_warned_it_goes_on_and_after_a_ranks_death_with_another_number_of_ranks(
    login: Cluster, project: Path
) -> None:
    job = Job(login, project)
    assert [(rank["node"], rank["start"]) for rank in job.ranks()] == [(0, 0)] * 2 + [(1, 0)] * 2
    login.run("scancel", "--signal=USR2", job.id)  # as a time limit that is near
    login.wait((job.run.path / "saved").exists, "it has saved", WAIT)
    restarted = job.ranks(restart=1)
    assert [rank["start"] for rank in restarted] == [job.saved()] * 4
    psutil.Process(restarted[3]["pid"]).kill()
    assert job.until("failed").reason == "rank 3: killed by SIGKILL"
    job.resubmit("--nodes", "3", "--gpus", "1")
    assert [(r["node"], r["start"]) for r in job.ranks(3)] == [(n, job.saved()) for n in range(3)]
    job.finish()
    status = read_status(job.run)
    assert status is not None
    assert status.attempt == 3


@pytest.mark.usefixtures("stood_in_for")
def test_a_tasks_death_is_told_by_its_node_and_a_more_important_job_is_given_way(
    login: Cluster, project: Path
) -> None:
    job = Job(login, project, "partition=low")
    job.ranks()
    node = login.run("scontrol", "show", "hostnames", login.job(job.id)["NodeList"]).split()[1]
    for process in psutil.process_iter():
        if is_task(process, job.id, "1"):
            process.kill()
    assert job.until("crashed").reason == f"killed (SIGKILL) on {node}"
    job.resubmit()
    job.ranks()
    everything = ["--partition=high", "--nodes=3", "--exclusive"]
    more = login.submit(*everything, script="sleep 3")
    login.wait_for(more, "RUNNING", WAIT)
    assert job.until("preempted").progress == ""
    assert [rank["start"] for rank in job.ranks(restart=1)] == [job.saved()] * 4
    job.finish()


@pytest.mark.usefixtures("stood_in_for")
def test_when_one_of_its_nodes_fails_it_is_queued_again(login: Cluster, project: Path) -> None:
    job = Job(login, project)
    job.ranks()
    node = login.run("scontrol", "show", "hostnames", login.job(job.id)["NodeList"]).split()[1]
    login.crash(node)
    restarted = job.ranks(restart=1)
    assert {rank["node"] for rank in restarted} == {0, 1}
    login.restore(node)
    job.finish()


def is_task(process: psutil.Process, job: str, node: str) -> bool:
    try:
        own = process.environ()
        named = "submitit.core._submit" in process.cmdline()
        return named and (own["SLURM_JOB_ID"], own["SLURM_NODEID"]) == (job, node)
    except (psutil.Error, KeyError):  # it has ended, or is no job's
        return False
