"""A run of several processes that costs nothing: it sums and sleeps. It can be told to go wrong.

    python -m tests.helpers.rank_program parent|rank FOLDER [TROUBLE]

The folder gets a file for each rank: ``pid-1``, its process; ``at-1``, the phase it is in; and,
where it stopped, ``saved-1`` with its number of steps, from which the next attempt goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from reasonrl.runs import process as processes
from reasonrl.runs.folder import RunFolder, running
from reasonrl.runs.preemption import STOPPED, Preempted, at_own_pace, boundary, listening
from reasonrl.runs.process import Process
from reasonrl.runs.rank import as_rank
from reasonrl.runs.ranks import make_together
from reasonrl.util.errors import UserError
from tests.helpers.configs import small_config

SIZE, STEPS = 3, 40


@dataclass(frozen=True)
class Trouble:
    """What goes wrong in one rank."""

    rank: int = -1  # none
    phase: str = ""  # start, sampling or step
    how: str = ""  # raise, refuse, exit or hang


def parent(folder: Path, trouble: Trouble) -> None:
    """Owns the run, and starts its ranks with this very program."""
    module = "tests.helpers.rank_program"
    command = [sys.executable, "-m", module, "rank", str(folder), json.dumps(asdict(trouble))]
    with listening():
        try:
            with running(RunFolder(folder)):
                make_together(command, small_config(folder, f"runtime.processes={SIZE}"))
        except Preempted as told:
            print(f"stopped by {told}")
            sys.exit(STOPPED)


def rank(folder: Path, trouble: Trouble) -> None:
    name = os.environ["RANK"]
    (folder / f"pid-{name}").write_text(str(os.getpid()))

    def reach(phase: str) -> None:
        (folder / f"at-{name}").write_text(phase)
        if (trouble.rank, trouble.phase) == (int(name), phase):
            go_wrong(trouble.how)

    if trouble.how == "hang":
        processes.TIMEOUT = timedelta(seconds=3)
    if trouble.phase == "start" and trouble.how != "raise":
        reach("start")
    with as_rank() as process:
        work(process, folder, reach)


def go_wrong(how: str) -> None:
    if how == "raise":
        raise ValueError("no room\non the device")
    if how == "refuse":
        raise UserError("disk=full must have room. Make some.")
    if how == "exit":
        os._exit(3)
    time.sleep(600)


def work(process: Process, folder: Path, reach: Callable[[str], None]) -> None:
    import torch

    saved = folder / f"saved-{process.rank}"
    taken = int(saved.read_text()) if saved.exists() else 0
    reach("start")
    with at_own_pace(process):
        for number in process.deal("work", 12):
            reach("sampling")
            boundary()
            time.sleep(0.02 * (number % 3))
    for step in range(taken + 1, STEPS + 1):
        reach("step")
        assert process.sum(torch.ones(1)).item() == SIZE
        time.sleep(0.02)
        boundary(partial(saved.write_text, str(step)), process=process)  # type: ignore[arg-type]
    saved.write_text(str(STEPS))


if __name__ == "__main__":
    who, where, *what = sys.argv[1:]
    known = Trouble(**json.loads(what[0])) if what else Trouble()
    {"parent": parent, "rank": rank}[who](Path(where), known)
