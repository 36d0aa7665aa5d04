"""Which processes make a run, and on which machines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.runs.machines import Machine, are_needed, check, num_processes
from reasonrl.util.errors import UserError


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the size from which the learning rates of small models are refused."""
    monkeypatch.setattr("reasonrl.runs.machines.LARGE", 800_000_000)


@pytest.mark.parametrize(
    ("given", "in_slurm", "expected"),
    [
        (["runtime.processes=3"], False, 3),
        (["runtime.processes=3"], True, 3),
        (["model.resources.gpus=4"], False, 1),  # a small model
        (["model.resources.gpus=4", "model.resources.nodes=2"], True, 8),
        (["model.resources.gpus=0"], True, 1),
        (["model.resources.gpus=0", "model.resources.nodes=2"], True, 2),
        (["model.num_parameters=900000000"], False, 6),
        (["model.num_parameters=900000000", "model.device=cpu"], False, 1),
        (["model.num_parameters=900000000", "model.device=cuda:1"], False, 1),
    ],
)
def test_the_number_of_processes(
    configure: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    in_slurm: bool,
    expected: int,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 6)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if in_slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert num_processes(configure(*given)) == expected


def test_a_large_model_on_a_machine_without_gpus_has_one_process(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert num_processes(configure("model.num_parameters=900000000")) == 1


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        (["runtime.processes=2"], 0, True),
        (["runtime.processes=1"], 1, False),
        (["model.num_parameters=900000000"], 1, True),
        (["model.num_parameters=900000000", "model.device=cpu"], 1, False),
        (["model.num_parameters=900000000"], 0, False),
    ],
)
def test_one_rank_is_needed_for_a_large_model_on_a_gpu(
    configure: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    gpus: int,
    expected: bool,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert are_needed(configure(*given)) == expected


@pytest.mark.parametrize("wrong", ["0", "-2", "many", "2.5"])
def test_a_number_of_processes_that_cannot_be(
    configure: Callable[..., TrainConfig], wrong: str
) -> None:
    with pytest.raises(UserError, match=r"runtime\.processes"):
        configure(f"runtime.processes={wrong}")


def test_what_cannot_be_started_here_is_refused(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check(configure("runtime.processes=2"))
    check(configure("runtime.processes=4", "model.device=cpu"))
    with pytest.raises(UserError, match=r"this machine has 2\. Pass runtime.processes=2\."):
        check(configure("runtime.processes=4"))
    with pytest.raises(UserError, match=r"model.device=cuda:1 must be auto, cuda or cpu"):
        check(configure("runtime.processes=2", "model.device=cuda:1"))
    in_a_step(monkeypatch, nodes=2, tasks=2)
    check(configure("runtime.processes=4"))
    with pytest.raises(UserError, match=r"machines; got 2\. Pass runtime.processes=4\."):
        check(configure("runtime.processes=3"))


def in_a_step(monkeypatch: pytest.MonkeyPatch, *, nodes: int, tasks: int) -> None:
    step = {"SLURM_JOB_ID": "12017", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gone[1-2]"}
    step |= {"SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NUM_TASKS": str(tasks)}
    for name, value in (step | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}).items():
        monkeypatch.setenv(name, value)


def test_the_machines_of_a_job_step_with_a_task_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_NODES", raising=False)
    assert Machine.here() == Machine(0, 1, "localhost", 0)
    in_a_step(monkeypatch, nodes=2, tasks=4)  # nobody's ranks are started for us
    assert Machine.here() == Machine(0, 1, "localhost", 0)
    in_a_step(monkeypatch, nodes=2, tasks=2)
    assert Machine.here() == Machine(1, 2, "10.0.0.7", 20_017)
