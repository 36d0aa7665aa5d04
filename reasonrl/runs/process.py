"""The process that a run is made in, as one of the processes that make it together.

So far a run has one process: ``ALONE``. Code that would differ between several processes asks the
process it is given: who writes, who samples what, on which device, and when all stop. Sampling,
signals, ownership, the log, provenance and W&B ask it already. Learning, checkpoints, saved weights
and what ``pipeline/execute.py`` and the algorithms write don't yet. This module imports torch only
to find a device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes of a run, and what it does together with the others."""

    rank: int = 0  # the process's number, from 0
    size: int = 1  # the number of processes of the run

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes what belongs to the run as a whole."""
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """The device that ``model.device`` means here; ``auto`` is a GPU where there is one.

        Raises UserError for a device that isn't there.
        """
        import torch

        if wanted == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(wanted)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.device={wanted} must be a device of this machine; got {reason}. "
                "Pass model.device=auto."
            ) from None
        return device

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of items that are dealt out to all."""
        return items[self.rank :: self.size]

    def agree(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
        """What all processes do: stop if any was told to, and save if the main one finds it due."""
        return stop, due

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process."""
        return value

    def barrier(self) -> None:
        """Returns when all processes have come here."""


ALONE = Process()


def usable_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has.

    Not every cluster binds a job to the cores it has asked for.
    """
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(bound, int(os.environ.get("SLURM_CPUS_PER_TASK", bound)))
