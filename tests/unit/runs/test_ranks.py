"""A parent and its ranks: how the first failure is told, how all end, and how all stop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from reasonrl.runs import ranks
from reasonrl.runs.folder import RunFolder, Status, read_status
from reasonrl.runs.machines import Machine
from tests.helpers.configs import ROOT
from tests.helpers.rank_program import SIZE, STEPS, Trouble

PROGRAM = [sys.executable, "-m", "tests.helpers.rank_program"]
NOTHING = Trouble()
SOON = 60.0  # seconds; what hangs takes 600, and the busy machine's share of it is large


@pytest.mark.parametrize(
    ("is_well", "told", "left", "seconds"),
    [
        (True, False, False, 2.0),
        (False, False, False, 5.0),
        (False, True, False, 2.0),
        (False, False, True, 0.0),
    ],
)
def test_after_a_failure_a_silent_machine_is_waited_for_until_slurm_knows(
    monkeypatch: pytest.MonkeyPatch, is_well: bool, told: bool, left: bool, seconds: float
) -> None:
    """Its job then goes back into the queue, which it doesn't if it has ended."""
    from torch.distributed import HashStore

    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(ranks, "time", clock)
    monkeypatch.setattr(ranks, "PARTING_SECONDS", 1.5)
    monkeypatch.setattr(ranks, "SILENCE_SECONDS", 4.5)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 1.0)
    monkeypatch.setattr(ranks, "received", lambda: signal.SIGTERM if told else None)
    store = HashStore()
    if left:
        store.set("left/1", "")
    ranks._part(store, Machine(count=2), is_well=is_well)
    assert sum(slept) == seconds


# --- how they end


class Attempt:
    """A parent at work, in a folder."""

    def __init__(self, folder: Path, trouble: Trouble = NOTHING) -> None:
        self.folder, self.run = folder, RunFolder(folder)
        folder.mkdir(exist_ok=True)
        for file in folder.glob("*-[0-9]"):
            if not file.name.startswith("saved"):
                file.unlink()
        with open(folder.with_suffix(".log"), "ab") as log:
            self.parent = subprocess.Popen(
                [*PROGRAM, "parent", str(folder), json.dumps(asdict(trouble))],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                # In the background of a script it would be started to ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def log(self) -> str:
        return self.folder.with_suffix(".log").read_text()

    @property
    def status(self) -> Status:
        status = read_status(self.run)
        assert status is not None, self.log
        return status

    def pids(self) -> list[int]:
        return [int(text) for file in self.folder.glob("pid-*") if (text := file.read_text())]

    def wait_for(self, phase: str, *, ranks: int = SIZE) -> None:
        """Until so many ranks have come into the phase."""
        self._wait(lambda: [self._at(rank) for rank in range(SIZE)].count(phase) >= ranks)

    def wait_for_ranks(self) -> None:
        """Until all of them have a process."""
        self._wait(lambda: len(self.pids()) == SIZE)

    def _at(self, rank: int) -> str:
        file = self.folder / f"at-{rank}"
        return file.read_text() if file.exists() else ""

    def _wait(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline, self.log
            assert self.parent.poll() is None, self.log
            time.sleep(0.01)

    def ends(self, seconds: float = 60.0) -> int:
        """Its exit status; in time, and without leaving anybody behind."""
        code = self.parent.wait(timeout=seconds)
        deadline = time.monotonic() + 10.0
        while left := [pid for pid in self.pids() if lives(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
        return code


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    begun: list[Attempt] = []

    def begin(trouble: Trouble = NOTHING) -> Attempt:
        begun.append(Attempt(tmp_path / "run", trouble))
        return begun[-1]

    yield begin
    for one in begun:
        one.parent.kill()  # which takes the ranks with it
        one.parent.wait()


@pytest.mark.slow
def test_left_alone_they_do_the_work(attempt: Callable[..., Attempt]) -> None:
    one = attempt()
    assert one.ends() == 0, one.log
    assert (one.status.state, one.status.attempt, one.status.pid) == ("done", 1, one.parent.pid)
    assert [file.read_text() for file in one.folder.glob("saved-*")] == [str(STEPS)] * SIZE


RAISED = "rank 1: ValueError: no room on the device"
EXITED = "rank 1: ended with exit status 3 before its work was done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "phase", "said"),
    [
        ("raise", "start", RAISED),
        ("raise", "step", RAISED),
        ("exit", "start", EXITED),
        ("exit", "sampling", EXITED),
        ("exit", "step", EXITED),
    ],
)
def test_who_fails_first_is_named(
    attempt: Callable[..., Attempt], how: str, phase: str, said: str
) -> None:
    one = attempt(Trouble(1, phase, how))
    one.wait_for(phase, ranks=1)
    assert one.ends(SOON) == 1
    assert one.status.state == "failed"
    assert str(one.status.error).startswith(said)
    assert ("on the device\n\nrank 1:\nTraceback" in one.log) == (how == "raise")


@pytest.mark.slow
def test_what_the_user_can_put_right_stays_that(attempt: Callable[..., Attempt]) -> None:
    one = attempt(Trouble(2, "step", "refuse"))
    one.ends()
    assert one.status.error == "rank 2: disk=full must have room. Make some."
    assert "UserError: rank 2" in one.log


@pytest.mark.slow
def test_who_hangs_is_named(attempt: Callable[..., Attempt]) -> None:
    one = attempt(Trouble(1, "step", "hang"))
    one.wait_for("step")
    assert one.ends(SOON) == 1
    assert str(one.status.error).endswith("(had to be killed: rank 1)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "phase"), [(0, "start"), (1, "start"), (0, "sampling"), (0, "step"), (1, "step")]
)
def test_a_rank_that_is_killed_is_named(
    attempt: Callable[..., Attempt], rank: int, phase: str
) -> None:
    one = attempt()
    one.wait_for_ranks()
    if phase != "start":
        one.wait_for(phase)
    os.kill(int((one.folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    assert one.ends(SOON) == 1
    assert one.status.state == "failed"
    assert str(one.status.error).startswith(f"rank {rank}: killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["start", "sampling", "step"])
def test_ranks_do_not_outlive_their_parent(attempt: Callable[..., Attempt], phase: str) -> None:
    one = attempt()
    one.wait_for_ranks()
    if phase != "start":
        one.wait_for(phase)
    one.parent.kill()
    assert one.ends(SOON) == -signal.SIGKILL
    assert one.status.state == "running"  # nobody is left to say more; the heartbeat tells


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_at_once(attempt: Callable[..., Attempt]) -> None:
    one = attempt(Trouble(1, "step", "hang"))
    one.wait_for("step")
    one.parent.send_signal(signal.SIGINT)
    time.sleep(0.5)
    one.parent.send_signal(signal.SIGINT)
    one.ends(SOON)
    assert (one.status.state, one.status.error) == ("failed", "interrupted")


# --- how they stop


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_told_to_stop_at_any_moment_all_stop_at_the_same_step(
    attempt: Callable[..., Attempt], seed: int
) -> None:
    """During imports too: the first signal comes as soon as there is a rank."""
    rng = random.Random(seed)
    told: list[int] = []
    stops = 0
    while True:
        one = attempt()
        one.wait_for_ranks()
        if stops:
            time.sleep(rng.uniform(0, 6))
        number = rng.choice([signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
        if stops < 4:
            one.parent.send_signal(number)
        code = one.ends()
        saved = {file.read_text() for file in one.folder.glob("saved-*")}
        assert len(saved) <= 1, saved
        if one.status.state == "done":  # and a signal may have come after that
            break
        assert code == 75, one.log
        assert one.log.splitlines()[-1] == f"stopped by {number.name}"
        assert one.status.state == "preempted"
        told += map(int, saved)
        stops += 1
    assert 1 <= stops <= 4
    assert one.status.state == "done"
    assert saved == {str(STEPS)}
    assert told == sorted(told)


@pytest.mark.slow
def test_where_one_rank_is_told_all_stop(attempt: Callable[..., Attempt]) -> None:
    one = attempt()
    one.wait_for("step")
    os.kill(int((one.folder / "pid-2").read_text()), signal.SIGTERM)
    assert one.ends(SOON) == 75
    assert len({file.read_text() for file in one.folder.glob("saved-*")}) == 1
