"""A job: what it leaves behind when it can't begin, and when it goes back into the queue."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline import planner as planning
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import (
    RunFolder,
    Status,
    read_status,
    write_config,
    write_status,
)
from reasonrl.runs.preemption import Preempted
from reasonrl.runs.provenance import now
from reasonrl.sweep.worker import work
from reasonrl.util.errors import UserError


@pytest.fixture
def run(configure: Callable[..., TrainConfig]) -> RunFolder:
    """Of Expert Iteration, whose policy has to be fine-tuned first."""
    planned = plan(configure("algorithm=ei"))
    write_config(planned.run, planned.config)
    return planned.run


def program(folder: Path, name: str, script: str) -> None:
    """Records what it is called with, in commands.txt."""
    file = folder / name
    file.write_text(f'#!/bin/sh\necho "$(basename $0) $*" >> {folder}/commands.txt\n{script}\n')
    file.chmod(0o755)


@pytest.fixture
def as_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Preempts a run that is made in job 17, of this state; returns the commands to Slurm."""

    def preempted(run: RunFolder, state: str, *, restarts: int = 0, max_requeues: int = 3):  # type: ignore[no-untyped-def]
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "commands.txt").touch()
        program(folder, "squeue", state)
        program(folder, "scontrol", "")
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        stop_at_once(monkeypatch)
        with pytest.raises(SystemExit) as ended:
            work(str(run.path), max_requeues)
        assert ended.value.code == 75
        return (folder / "commands.txt").read_text().splitlines()

    return preempted


def stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def preempt(*_: object) -> None:
        raise Preempted("SIGUSR2")

    monkeypatch.setattr(planning, "plan", preempt)


ASK = "squeue --noheader --jobs=17 --format=%T"


def test_a_job_that_was_warned_goes_back_into_the_queue(
    run: RunFolder, as_job: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_job(run, "echo RUNNING", restarts=2) == [ASK, "scontrol requeue 17"]
    assert "reasonrl: saved, and back in the queue\n" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["echo COMPLETING", "true"])
def test_a_job_that_is_being_ended_does_not(
    run: RunFolder, as_job: Callable[..., list[str]], state: str
) -> None:
    assert as_job(run, state) == [ASK]


def test_a_job_that_was_queued_often_enough_does_not(
    run: RunFolder, as_job: Callable[..., list[str]]
) -> None:
    assert as_job(run, "echo RUNNING", restarts=3) == []


def test_where_slurm_does_not_answer_it_says_so(
    run: RunFolder, as_job: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_job(run, "echo 'squeue: error: nobody there' >&2; exit 1") == [ASK]
    out = capsys.readouterr().out
    assert "not queued again: squeue must answer; got squeue: error: nobody there." in out


def test_of_an_array_only_its_own_task_goes_back(
    run: RunFolder, as_job: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last task's own id is that of the whole array."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    asked = ASK.replace("=17", "=17_3")
    assert as_job(run, "echo RUNNING") == [asked, "scontrol requeue 17_3"]


def test_a_job_has_its_own_service_of_w_and_b(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/tmp/of-a-notebook/socket")
    seen = []
    monkeypatch.setattr(planning, "plan", lambda _: seen.append("WANDB_SERVICE" in os.environ))
    with pytest.raises(AttributeError):  # it got no plan
        work(str(run.path))
    assert seen == [False]


@pytest.fixture
def other_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the task of a job's second node."""
    step = {"STEP_NUM_NODES": "2", "STEP_NUM_TASKS": "2", "NODEID": "1", "JOB_ID": "17"}
    for name, value in (step | {"JOB_NODELIST": "n", "LAUNCH_NODE_IPADDR": "::1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.usefixtures("other_node")
def test_on_another_node_it_leaves_the_run_and_the_queue_to_the_first(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at_once(monkeypatch)
    work(str(run.path), 3)  # it returns, and so exits with 0
    assert read_status(run) is None
    assert "attempt" not in capsys.readouterr().out


@pytest.mark.usefixtures("other_node")
def test_what_goes_wrong_on_another_node_is_raised_and_not_the_runs_word(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(planning, "plan", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        work(str(run.path), 3)
    assert read_status(run) is None


def test_a_run_counts_the_nodes_and_gpus_that_its_job_has(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may ask for others than the model does, and be submitted again with yet others."""
    seen = []
    monkeypatch.setattr(planning, "plan", lambda config: seen.append(config.model.resources))
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    for executor in ("", "slurm"):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        with pytest.raises(AttributeError):  # it got no plan
            work(str(run.path))
    assert [(asked.nodes, asked.gpus) for asked in seen] == [(1, 0), (1, 4)]


def test_without_slurm_it_only_ends(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    stop_at_once(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        work(str(run.path), 3)
    assert ended.value.code == 75
    assert read_status(run) is None


def test_a_prerequisite_that_is_not_done_is_named(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"must have its prerequisites first; .*/sft-tiny-.* isn't"):
        work(str(run.path))
    status = read_status(run)
    assert status is not None
    assert (status.state, status.attempt) == ("failed", 1)
    assert "Resubmit the sweep" in str(status.error)
    assert f"reasonrl: attempt 1 of {run.path}\n" in capsys.readouterr().out


def test_what_goes_wrong_before_it_begins_is_its_last_word(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(planning, "plan", fail)
    preempted = Status("preempted", 4, "other", 7, started=now(), heartbeat=now())
    write_status(run, preempted)
    with pytest.raises(RuntimeError):
        work(str(run.path))
    status = read_status(run)
    assert status is not None
    assert (status.state, status.attempt) == ("failed", 5)
    assert status.error == "RuntimeError: no luck"


def test_what_goes_wrong_with_a_run_that_is_done_leaves_it_done(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(planning, "plan", fail)
    done = Status("done", 1, "other", 7, started=now(), heartbeat=now())
    write_status(run, done)
    with pytest.raises(RuntimeError):
        work(str(run.path))
    assert read_status(run) == done


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a run's folder"):
        work(str(tmp_path / "nothing"))
