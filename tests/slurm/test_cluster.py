"""The one-machine SLURM does what the launcher's tests rely on."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import KERNEL_LIMITS_MEMORY, SLURM_CONF, Cluster, ClusterError


def states(slurm: Cluster, array: str) -> list[str]:
    """The states of an array's tasks, ended ones too."""
    shown = slurm.run("scontrol", "--oneliner", "show", "job", array)
    return [line.split("JobState=")[1].split()[0] for line in shown.splitlines()]


def test_srun_spans_two_nodes(slurm: Cluster) -> None:
    shown = slurm.run("srun", "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME")
    assert len(set(shown.splitlines()) & set(slurm.nodes)) == 2


def test_an_array_waits_for_what_it_depends_on(slurm: Cluster) -> None:
    first = slurm.submit(script="sleep 1")
    array = slurm.submit("--array=0-4", f"--dependency=afterok:{first}", script="true")
    slurm.wait(lambda: slurm.job(array)["Reason"] == "Dependency", "the array waits")
    slurm.wait(lambda: states(slurm, array) == ["COMPLETED"] * 5, "all five tasks completed")


def test_a_job_that_exits_3_failed_and_its_dependants_never_start(slurm: Cluster) -> None:
    failing = slurm.submit(script="exit 3")
    waiting = slurm.submit(f"--dependency=afterok:{failing}", script="true")
    cancelled = slurm.submit(
        f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes", script="true"
    )
    assert slurm.wait_for(failing, "FAILED")["ExitCode"] == "3:0"
    slurm.wait(
        lambda: slurm.job(waiting)["Reason"] == "DependencyNeverSatisfied", "the job never starts"
    )
    slurm.wait_for(cancelled, "CANCELLED")


def test_a_running_job_can_be_cancelled(slurm: Cluster) -> None:
    job = slurm.submit(script="sleep 60")
    slurm.wait_for(job, "RUNNING")
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")


def test_a_job_that_takes_more_memory_than_it_asked_for_is_killed(slurm: Cluster) -> None:
    greedy = f"{sys.executable} -c 'import time; x = b\"x\" * (200 << 20); time.sleep(20)'"
    job = slurm.submit("--mem=50", script=greedy)
    if KERNEL_LIMITS_MEMORY:
        slurm.wait_for(job, "OUT_OF_MEMORY")
    else:
        assert slurm.wait_for(job, "FAILED")["ExitCode"] == "0:9"
        assert "exceeded memory limit" in slurm.output(job)


def test_a_job_can_queue_itself_again(slurm: Cluster) -> None:
    # Bash runs a trap between commands, hence the short naps.
    job = slurm.submit(
        "--open-mode=append",
        script="echo start $SLURM_RESTART_COUNT\n"
        "[ $SLURM_RESTART_COUNT ] && exit\n"
        "trap 'scontrol requeue $SLURM_JOB_ID' USR2\n"
        "while true; do sleep 0.1; done",
    )
    slurm.wait(lambda: "start" in slurm.output(job), "it has started")
    slurm.run("scancel", "--batch", "--signal=USR2", job)
    assert slurm.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert re.findall("^start.*", slurm.output(job), re.MULTILINE) == ["start", "start 1"]


def test_a_crashed_node_is_noticed_and_can_come_back(slurm: Cluster) -> None:
    node = slurm.nodes[0]
    lost = slurm.submit(f"--nodelist={node}", "--no-requeue", script="sleep 60")
    queued_again = slurm.submit(f"--nodelist={node}", script="[ $SLURM_RESTART_COUNT ] || sleep 60")
    for job in (lost, queued_again):
        slurm.wait_for(job, "RUNNING")
    slurm.crash(node)
    slurm.wait_for(lost, "NODE_FAIL")
    assert slurm.node_states()[node].startswith("down")
    slurm.restore(node)
    slurm.wait_for(queued_again, "COMPLETED")
    slurm.wait(lambda: slurm.node_states()[node] == "idle", "the node is back")


def test_low_gives_way_to_high_and_is_queued_again(slurm: Cluster) -> None:
    low = slurm.submit(
        *("--partition=low", "--exclusive", "--nodes=3", "--signal=B:USR2@60"),
        script="[ $SLURM_RESTART_COUNT ] && exit\n"
        "trap 'echo warned' USR2\nwhile true; do sleep 0.1; done",
    )
    slurm.wait_for(low, "RUNNING")
    high = slurm.submit("--partition=high", script="true")
    slurm.wait(lambda: "warned" in slurm.output(low), "the low job was warned")
    slurm.wait_for(high, "COMPLETED")
    assert slurm.wait_for(low, "COMPLETED")["Restarts"] == "1"


def test_an_array_index_must_be_below_the_limit(slurm: Cluster) -> None:
    with pytest.raises(ClusterError, match="Invalid job array specification"):
        slurm.submit("--array=0-101", script="true")


def test_a_thousand_waiting_tasks_are_listed_at_once(slurm: Cluster) -> None:
    arrays = [slurm.submit("--hold", "--array=0-99", script="true") for _ in range(10)]
    started = time.monotonic()
    shown = slurm.run("squeue", "--noheader", "--array", f"--jobs={','.join(arrays)}")
    assert time.monotonic() - started < 5
    assert len(shown.splitlines()) == 1000


def test_stop_ends_what_is_left_after_a_crash(short_path: Path) -> None:
    command = [sys.executable, "-m", "tests.slurm.cluster"]
    started = subprocess.run([*command, "start", short_path], capture_output=True, text=True)
    assert f'export SLURM_CONF="{short_path}/slurm.conf"' in started.stdout
    again = subprocess.run([*command, "start", short_path], capture_output=True, text=True)
    assert (again.stdout, again.stderr) == (started.stdout, "Already running, with 3 nodes.\n")
    other = Cluster(short_path)
    sleeper = other.submit(script="exec sleep 1234")
    other.wait_for(sleeper, "RUNNING")
    other._kill("slurmctld")
    assert not other.running
    other.stop()
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in commands if bytes(short_path) in line or b"sleep\x001234" in line]


def test_a_cluster_that_does_not_start_says_why_and_leaves_nothing(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.slurm.cluster.SLURM_CONF", "NoSuchKey=1\n" + SLURM_CONF)
    with pytest.raises(ClusterError, match="unrecognized key: NoSuchKey"):
        Cluster(short_path).start()
    assert not list(short_path.glob("*.pid"))


def test_without_slurm_the_error_says_how_to_install_it(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.slurm.cluster.SEARCH", "")
    with pytest.raises(ClusterError, match=r"apt-get install .* slurm-wlm munge"):
        Cluster(short_path)
