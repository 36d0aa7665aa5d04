"""What is asked of a process: alone it has all to itself; of two, each its part."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from reasonrl.runs.folder import RunFolder, read_status, running
from reasonrl.runs.metrics_log import MetricsLog, read_metrics
from reasonrl.runs.preemption import Preempted, at_own_pace, boundary, listening
from reasonrl.runs.process import ALONE, Process, joined, usable_cores
from reasonrl.util.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class OfTwo(Process):
    """One of two processes, of which the other has its part in what they agree on."""

    size: int = 2
    other_stops: bool = False
    main_says: object = None

    def agree(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
        return stop or self.other_stops, due

    def broadcast(self, value: T) -> T:
        return value if self.is_main else self.main_says  # type: ignore[return-value]

    def first(self, make: Callable[[], T]) -> T:
        return make() if self.is_main else self.main_says  # type: ignore[return-value]


def test_alone_it_is_the_main_one_and_has_everything() -> None:
    assert (ALONE.rank, ALONE.size, ALONE.is_main) == (0, 1, True)
    assert ALONE.shard("abcde") == ALONE.piece("abcde") == "abcde"
    assert ALONE.agree(stop=False, due=True) == (False, True)
    assert ALONE.agree(stop=True, due=False) == (True, False)
    assert ALONE.broadcast("mine") == "mine"


def test_of_several_each_has_its_share() -> None:
    assert [Process(rank, 3).shard("abcdefg") for rank in range(3)] == ["adg", "be", "cf"]
    assert [Process(rank, 3).piece("abcdefg") for rank in range(3)] == ["ab", "cd", "efg"]
    assert [Process(rank, 3).is_main for rank in range(3)] == [True, False, False]


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    # What accelerate launch sets where it starts a single process on a CPU, whatever it was asked.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with joined() as process:
        assert process is ALONE


def test_a_launcher_says_which_process_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # By these variables both torchrun and accelerate launch do.
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # The others aren't there to be met.
    asked: dict[str, object] = {}
    monkeypatch.setitem(dist.rendezvous.__globals__, "_create_c10d_store", lambda *_: HashStore())
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(dist, "destroy_process_group", asked.clear)
    monkeypatch.setattr("accelerate.PartialState", Mock())
    with joined() as process:
        found = (process.rank, process.size, process.local_rank, process.local_size)
        assert found == (5, 8, 1, 4)
        assert (asked["rank"], asked["world_size"]) == (5, 8)
    assert not asked


def test_devices() -> None:
    assert ALONE.device("cpu") == torch.device("cpu")
    assert ALONE.device("auto").type in ("cpu", "cuda")
    for device in ("cuda:99", "tpu"):
        with pytest.raises(UserError, match=f"model.device={device} must be a device of this"):
            ALONE.device(device)


@pytest.mark.parametrize(("asked", "cores"), [(None, 8), ("3", 3), ("16", 8)])
def test_a_job_uses_the_cores_it_has_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if asked:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert usable_cores() == cores


def test_where_one_is_told_to_stop_all_stop_with_a_checkpoint() -> None:
    saved: list[int] = []
    with pytest.raises(Preempted, match="a signal to another process"):
        boundary(lambda: saved.append(1), process=OfTwo(other_stops=True))
    assert saved == [1]
    boundary(lambda: saved.append(2), process=OfTwo())
    assert saved == [1]


def test_at_their_own_pace_they_stop_when_all_have_come_to_the_end() -> None:
    done: list[str] = []
    with pytest.raises(Preempted), at_own_pace(OfTwo(other_stops=True)):
        done.append("my part")
    with listening():
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(Preempted, match="SIGUSR2"), at_own_pace(OfTwo()):
            boundary()
    with at_own_pace(OfTwo()):
        done.append("undisturbed")
    assert done == ["my part", "undisturbed"]


def test_the_main_one_owns_the_run_and_says_whether_there_is_anything_to_do(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "run")
    with running(run, process=OfTwo(rank=1, main_says=True)) as todo:
        assert todo
    assert not run.path.exists()
    with running(run, process=OfTwo()) as todo:
        assert todo
        # The other isn't kept out by the lock.
        with running(run, process=OfTwo(rank=1, main_says=True)) as other_todo:
            assert other_todo
    status = read_status(run)
    assert status is not None
    assert status.state == "done"


def test_the_main_one_alone_writes_metrics(tmp_path: Path) -> None:
    file, lines = tmp_path / "metrics.jsonl", list[str]()
    with MetricsLog(file, lambda: lines.append("a line"), OfTwo(rank=1)) as log:
        log.rewind(0)
        log.log(1, {"sft/loss": 0.5})
        assert log.position() == 0
    assert not file.exists()
    assert lines == []
    with MetricsLog(file, lambda: lines.append("a line"), OfTwo()) as log:
        log.log(1, {"sft/loss": 0.5})
    assert read_metrics(file) == [{"step": 1, "sft/loss": 0.5}]
    assert lines == ["a line"]
