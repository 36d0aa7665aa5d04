"""What the commands of a real Slurm are read as."""

import sys
from pathlib import Path

import pytest

from reasonrl.sweep import slurm as commands
from reasonrl.sweep.slurm import Ended, SlurmError
from tests.slurm.cluster import Cluster


@pytest.fixture(autouse=True)
def on_the_cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)


def test_queue_holds_our_living_jobs(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.available()
    folder = Path("/somewhere/with a space|and more")
    array = slurm.submit("--array=0-1", f"--comment=reasonrl:{folder}", "--hold", script="true")
    single = slurm.submit("--comment=reasonrl:/x", "--time=90", script="sleep 60")
    another = slurm.submit("--comment=another's", "--hold", script="true")
    slurm.wait_for(single, "RUNNING")
    # What people set for themselves must not change what is read.
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    jobs = {job.id: job for job in commands.queue()}
    # The cluster is shared with tests before this one, whose jobs may be ending still.
    assert {f"{array}_0", f"{array}_1", single} <= jobs.keys()
    assert another not in jobs
    held = jobs[f"{array}_1"]
    assert (held.array, held.task, held.state) == (array, 1, "PENDING")
    assert (held.reason, held.batch, held.seconds_left) == ("JobHeldUser", folder, None)
    running = jobs[single]
    assert (running.array, running.task, running.state) == (single, 0, "RUNNING")
    assert running.seconds_left is not None
    assert 5300 < running.seconds_left <= 5400  # of 90 minutes


def test_ended_jobs_say_how(slurm: Cluster) -> None:
    segfault = f"{sys.executable} -c 'import ctypes; ctypes.string_at(0)'"
    batch = Path("/somewhere/with a space|and more, and many more letters than fit a column")
    ours = f"--comment=reasonrl:{batch}"
    jobs = {
        "good": slurm.submit(ours, script="true"),
        "exit 3": slurm.submit(ours, "--array=0", script="exit 3") + "_0",
        "segfault": slurm.submit(ours, script=segfault),
        "cancelled": slurm.submit(ours, script="sleep 60"),
        "alive": slurm.submit(ours, "--hold", script="true"),
    }
    after = (f"--dependency=afterok:{jobs['exit 3']}", "--kill-on-invalid-dep=yes")
    needs = slurm.submit(ours, *after, script="true")
    another = slurm.submit("--comment=another's", script="true")
    slurm.wait_for(jobs["cancelled"], "RUNNING")
    commands.cancel([jobs["cancelled"]])
    expected = {(batch, id) for id in (*jobs.values(), needs)} - {(batch, jobs["alive"])}
    slurm.wait(lambda: expected <= commands.ended().keys(), "all ended")
    slurm.wait_for(another, "COMPLETED")
    assert another not in {id for _, id in commands.ended()}
    ended = {id: end for (folder, id), end in commands.ended().items() if folder == batch}
    assert jobs["alive"] not in ended
    assert ended[jobs["good"]] == Ended("COMPLETED", "None", 0)
    assert ended[jobs["exit 3"]] == Ended("FAILED", "NonZeroExitCode", 768)  # 3 * 256
    assert ended[jobs["segfault"]] == Ended("FAILED", "NonZeroExitCode", 35584)  # 139 * 256
    assert ended[jobs["cancelled"]].state == "CANCELLED"
    assert (ended[needs].state, ended[needs].reason) == ("CANCELLED", "DependencyNeverSatisfied")
    assert commands.accounting(list(jobs.values())) == {}  # there is no database


def test_cancel_takes_many_and_those_that_have_ended(slurm: Cluster) -> None:
    over = slurm.submit(script="true")
    slurm.wait_for(over, "COMPLETED")
    arrays = [
        slurm.submit("--hold", "--array=0-99", "--comment=reasonrl:/x", script="true")
        for _ in range(6)
    ]
    ids = [f"{array}_{task}" for array in arrays for task in range(100)]
    assert len(commands.queue()) == 600
    commands.cancel([over, *ids, "999999"])
    slurm.wait(lambda: not commands.queue(), "nothing is alive")


def test_max_array_size() -> None:
    assert commands.max_array_size() == 101  # as the fixture started it


def test_a_controller_that_does_not_answer_is_one_line(
    tmp_path: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = slurm.conf.read_text().replace("SlurmctldPort=", "SlurmctldPort=1 #")
    (tmp_path / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SlurmError, match=r"^squeue must answer; got .*Unable to contact.*\.$"):
        commands.queue()


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not commands.available()
    with pytest.raises(SlurmError, match="squeue must answer; got no such program"):
        commands.queue()
    monkeypatch.setattr(commands, "TIMEOUT", 0.1)
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(SlurmError, match=r"nothing in 0\.1 s"):
        commands.queue()
