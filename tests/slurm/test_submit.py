"""Submission to a real SLURM: each run once, whatever happens to the launcher, and how fast."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import Status, write_status
from reasonrl.runs.provenance import now
from reasonrl.sweep.manifest import Member, Sweep
from reasonrl.sweep.status import look
from reasonrl.sweep.submit import resubmit, submit
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT, SMALL, small_config
from tests.slurm.cluster import Cluster

OPTIONS = {
    "nodes": 1,
    "gpus_per_node": 0,
    "cpus_per_task": 1,
    "mem_gb": 1,
    "timeout_min": 5,
    "setup": [],
    "signal_delay_s": 5,
    "max_requeues": 3,
    "additional_parameters": {},
}
# a and b are needed first: a by c, both by d.
NEEDS: dict[str, list[str]] = {"a": [], "b": [], "c": ["a"], "d": ["a", "b"], "e": []}
STEPS = {"os.rename", "os.mkdir", "subprocess.Popen"}  # after each of which a kill leaves a trace


@pytest.fixture(autouse=True)
def jobs_wait(login: Cluster) -> Iterator[None]:
    """None begins."""
    login.run("scontrol", "update", "PartitionName=high", "State=DOWN")
    yield
    login.run("scancel", "--me")
    login.run("scontrol", "update", "PartitionName=high", "State=UP")


def five(folder: Path) -> tuple[Sweep, dict[str, TrainConfig]]:
    outputs = folder / "outputs"
    sweep = Sweep(
        path=outputs / "sweeps" / "five",
        command=["train.py", "-m"],
        folder=str(folder),
        created=now(),
        cluster="slurm",
        code=str(ROOT),
        at_once=100,
        runs=[Member(name, [], needs, OPTIONS) for name, needs in NEEDS.items()],
    )
    return sweep, dict.fromkeys(NEEDS, small_config(outputs, "algorithm=sft"))


def queue(cluster: Cluster) -> dict[str, str]:
    """By job id, the ids of those it waits for."""
    lines = cluster.run("squeue", "--array", "--noheader", "--format=%i|%E").splitlines()
    return {line.partition("|")[0]: line.partition("|")[2] for line in lines}


def check_that_each_is_queued_once(cluster: Cluster, sweep: Sweep) -> None:
    findings = look(sweep)
    jobs = {finding.member.name: finding.job for finding in findings}
    waits = {
        job: {*found.replace("afterok:", "").split(",")} for job, found in queue(cluster).items()
    }
    assert sorted(waits) == sorted(map(str, jobs.values()))
    for name, needs in NEEDS.items():
        expected = {f"{jobs[need]}(unfulfilled)" for need in needs} or {"(null)"}
        assert waits[str(jobs[name])] == expected
    assert [r.verdict for r in findings] == [*["queued"] * 2, *["waiting"] * 2, "queued"]
    # Without these they would end in failure, a minute after they began.
    assert all((r.batch.path / f"{r.job}_submitted.pkl").exists() for r in findings if r.batch)


def test_a_sweep_is_submitted_with_its_dependencies(slurm: Cluster, tmp_path: Path) -> None:
    sweep, configs = five(tmp_path)
    assert submit(sweep, configs) == ["a", "b", "c", "d", "e"]
    check_that_each_is_queued_once(slurm, sweep)
    assert submit(sweep, configs) == []
    check_that_each_is_queued_once(slurm, sweep)


def test_what_is_done_is_neither_submitted_nor_waited_for(slurm: Cluster, tmp_path: Path) -> None:
    sweep, configs = five(tmp_path)
    for name in ("a", "e"):
        sweep.run(name).path.mkdir(parents=True)
        write_status(sweep.run(name), Status.here("done", 1))
    assert submit(sweep, configs) == ["b", "c", "d"]
    jobs = {finding.member.name: finding.job for finding in look(sweep)}
    found = queue(slurm)
    assert found[str(jobs["c"])] == "(null)"
    assert found[str(jobs["d"])] == f"afterok:{jobs['b']}(unfulfilled)"


def test_the_same_runs_elsewhere_are_others(slurm: Cluster, tmp_path: Path) -> None:
    sweeps = [five(tmp_path / name) for name in ("one", "two")]
    for sweep, configs in sweeps:
        assert submit(sweep, configs) == ["a", "b", "c", "d", "e"]
    jobs = [{finding.job for finding in look(sweep)} for sweep, _ in sweeps]
    assert len(jobs[0] | jobs[1]) == len(queue(slurm)) == 10


def test_a_launcher_inside_a_job_submits_as_outside(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"JOB_ID": "7", "ARRAY_JOB_ID": "6", "ARRAY_TASK_ID": "1", "MEM_PER_CPU": "100"}
    for name, value in outer.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    slurm.run("scontrol", "update", "PartitionName=high", "State=UP")
    sweep, configs = five(tmp_path)
    environment = {"setup": ["printenv | grep ^SLURM_ > variables; exit 0"]}
    submit(replace(sweep, runs=[Member("a", [], [], {**OPTIONS, **environment})]), configs)
    variables = tmp_path / "variables"
    slurm.wait(lambda: variables.exists() and not queue(slurm), "it has run")
    inner = dict(line.split("=", 1) for line in variables.read_text().splitlines())
    assert inner["SLURM_JOB_ID"] not in ("6", "7")
    assert {f"SLURM_{name}" for name in outer} & inner.keys() == {"SLURM_JOB_ID"}
    assert os.environ["SLURM_MEM_PER_CPU"] == "100"


def test_the_batch_script_is_the_sites_then_ours(slurm: Cluster, tmp_path: Path) -> None:
    sweep, configs = five(tmp_path)
    site = {"setup": ["module() { :; }", "module load cuda"], "cpus_per_task": 2}
    own = {"additional_parameters": {"requeue": False, "nice": 7}}
    code = "/a folder/code"
    submit(
        replace(sweep, code=code, runs=[Member("a", [], [], {**OPTIONS, **site, **own})]), configs
    )
    (script,) = sweep.batches.glob("*/*_submission.sh")
    text = script.read_text()
    setup = text.partition("# setup\n")[2].partition("\n\n")[0]
    assert setup.splitlines() == [
        "module() { :; }",
        "module load cuda",
        "export PYTHONSAFEPATH=1 PYTHONPATH='/a folder/code'${PYTHONPATH:+:$PYTHONPATH}",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK SLURM_EXPORT_ENV=ALL",
    ]
    assert "#SBATCH --nice=7\n" in text
    assert "requeue" not in text
    assert slurm.run("squeue", "--noheader", "--format=%c") == "2"


def test_what_jobs_ask_for_is_what_the_options_say_whatever_the_shell_does(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SBATCH_PARTITION": "low",
        "SBATCH_TIMELIMIT": "7",
        "SBATCH_MEM_PER_NODE": "100M",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_JOB_NAME": "mine",
        "SBATCH_OUTPUT": "mine-%j.out",
        "SLURM_MEM_PER_CPU": "500",
    }.items():
        monkeypatch.setenv(name, value)
    sweep, configs = five(tmp_path)
    asks = OPTIONS | {"partition": "high", "nodes": 2}
    submit(replace(sweep, runs=[Member(name, [], [], asks) for name in "ab"]), configs)
    job = slurm.job(f"{look(sweep)[0].job}")
    shown = {
        "JobName": "a-b-five",
        "Partition": "high",
        "TimeLimit": "00:05:00",
        "MinMemoryNode": "1G",
        "Requeue": "1",
        "NumNodes": "2-2",
    }
    assert job.items() >= shown.items()
    assert job["StdOut"].startswith(str(sweep.batches))


def test_a_shell_may_choose_the_partition_where_the_options_do_not(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "low")
    slurm.run("scontrol", "update", "PartitionName=low", "State=DOWN")
    sweep, configs = five(tmp_path)
    submit(replace(sweep, runs=[Member("a", [], [], OPTIONS)]), configs)
    assert slurm.job(str(look(sweep)[0].job))["Partition"] == "low"
    slurm.run("scontrol", "update", "PartitionName=low", "State=UP")


@pytest.mark.parametrize(
    ("asks", "shown"),
    [
        ({"additional_parameters": {"mem-per-cpu": "300M"}}, ("MinMemoryCPU", "300M")),
        ({"mem_gb": 0}, ("MinMemoryCPU", "1G")),  # DefMemPerCPU of this cluster
        ({"mem_gb": 2}, ("MinMemoryNode", "2G")),
    ],
)
def test_memory_may_be_asked_for_by_the_cpu_or_not_at_all(
    slurm: Cluster, tmp_path: Path, asks: dict[str, object], shown: tuple[str, str]
) -> None:
    sweep, configs = five(tmp_path)
    submit(replace(sweep, runs=[Member("a", [], [], OPTIONS | asks)]), configs)
    assert shown in slurm.job(str(look(sweep)[0].job)).items()


def test_a_sites_sbatch_may_print_a_welcome(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = shutil.which("sbatch", path=slurm.env["PATH"])
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "Welcome. Checking job 512 ... OK"\nexec {wrapped} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{slurm.env['PATH']}")
    sweep, configs = five(tmp_path)
    submit(sweep, configs)
    check_that_each_is_queued_once(slurm, sweep)


def test_a_job_that_sbatch_does_not_name_is_a_clear_error_and_is_submitted_anew(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n{shutil.which("sbatch", path=slurm.env["PATH"])} "$@"\necho Good luck\n'
    )
    program.chmod(0o755)
    sweep, configs = five(tmp_path)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{program.parent}:{slurm.env['PATH']}")
        with pytest.raises(UserError, match=r"must take the jobs of .*Good luck.*, and no job id"):
            submit(sweep, configs)
    assert len(queue(slurm)) == 3  # a, b and e
    submit(sweep, configs)
    slurm.wait(lambda: len(queue(slurm)) == 5, "those without orders are gone")
    check_that_each_is_queued_once(slurm, sweep)


@pytest.mark.parametrize("variable", ["SBATCH_EXPORT", "SLURM_EXPORT_ENV"])
def test_a_login_nodes_variables_may_be_kept_from_jobs(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "NONE")
    slurm.run("scontrol", "update", "PartitionName=high", "State=UP")
    sweep, configs = five(tmp_path)
    own = {"setup": ["srun() { command srun printenv > variables; }"]}
    submit(replace(sweep, runs=[Member("a", [], [], OPTIONS | own)]), configs)
    variables = tmp_path / "variables"
    slurm.wait(lambda: variables.exists() and not queue(slurm), "it has run")
    shown = variables.read_text().splitlines()
    assert "SUBMITIT_EXECUTOR=slurm" in shown
    assert [line for line in shown if line.startswith(f"PYTHONPATH={ROOT}")]


@pytest.mark.slow
def test_killed_anywhere_the_next_launcher_completes_the_submission(
    slurm: Cluster, tmp_path: Path
) -> None:
    for number in range(1, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        sweep, configs = five(folder)
        survived = submitting_dies_at(number, sweep, configs)
        submit(sweep, configs)
        check_that_each_is_queued_once(slurm, sweep)
        slurm.run("scancel", "--me")
        slurm.wait(lambda: not queue(slurm), "the queue is empty")
        shutil.rmtree(folder)
        if survived:
            break
    assert number > 20  # there were many places


def submitting_dies_at(number: int, sweep: Sweep, configs: dict[str, TrainConfig]) -> bool:
    """Whether it survived, having had fewer than so many steps."""
    child = os.fork()
    if child == 0:
        steps = 0

        def watch(event: str, _: tuple[object, ...]) -> None:
            nonlocal steps
            if event in STEPS:
                steps += 1
                if steps == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        exit_with(lambda: len(submit(sweep, configs)) - 5)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


def exit_with(status: Callable[[], int]) -> None:
    """Ends a forked child, before it takes itself for the test."""
    try:
        os._exit(status())
    finally:
        os._exit(99)


def test_two_at_the_same_moment_submit_each_run_once(slurm: Cluster, tmp_path: Path) -> None:
    sweep, configs = five(tmp_path)
    submit(sweep, configs)
    slurm.run("scancel", "--me")
    slurm.wait(lambda: not queue(slurm), "the queue is empty")
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            exit_with(lambda: len(resubmit(sweep, NEEDS, {"mem_gb": 2})))
        children.append(child)
    counts = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(counts) == [0, 0, 0, 5]
    check_that_each_is_queued_once(slurm, sweep)
    memory = slurm.run("squeue", "--array", "--noheader", "--format=%m")
    assert memory.split() == ["2G"] * 5
    assert [member.options["mem_gb"] for member in Sweep.read(sweep.path).runs] == [2] * 5


def test_what_slurm_refuses_is_a_clear_error_and_can_be_mended(
    slurm: Cluster, tmp_path: Path
) -> None:
    sweep, configs = five(tmp_path)
    asking = [replace(m, options=OPTIONS | {"partition": "nowhere"}) for m in sweep.runs]
    with pytest.raises(UserError, match="invalid partition specified: nowhere"):
        submit(replace(sweep, runs=asking), configs)
    assert queue(slurm) == {}
    assert {finding.verdict for finding in look(sweep)} == {"to do", "blocked"}
    submit(sweep, configs)
    check_that_each_is_queued_once(slurm, sweep)


@pytest.mark.slow
def test_a_thousand_runs(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limits are several times what two idle cores take, for a test has but a part of them."""
    outputs = f"runtime.outputs={tmp_path}"
    launch = ["train.py", "-m", "algorithm=sft", "seed=range(0,1000)", *SMALL, outputs]
    seconds = timed([*launch, "hydra.launcher.mem_gb=1"])
    assert len(queue(slurm)) == 1000
    asked = timed(["-m", "reasonrl.sweep", "status", "--outputs", str(tmp_path)])
    with capsys.disabled():
        print(f"1,000 runs: submitted in {seconds:.1f} s, their status in {asked:.2f} s", end=" ")
    assert seconds < 240
    assert asked < 10


def timed(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - started
