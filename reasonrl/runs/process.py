"""The process that a run is made in, as one of the processes that make it together.

A run of one process is ``ALONE``. A run of several has them joined in a group (``join``): they are
numbered by rank, and rank 0, the main one, writes what belongs to the run as a whole. Code that
would differ between them asks the process it is given: who writes, who does which part, on which
device, and when all stop. Nothing else in the code asks for a rank.

What processes tell each other on CPU tensors goes over gloo, and so never waits for a GPU. Every
method that says "together" has to be called by all processes in the same order. This module imports
torch only where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
S = TypeVar("S", bound=Sequence[Any])

# Processes wait for each other's shards, and for one that reads a model or saves a checkpoint.
TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class Process:
    """One of the processes of a run, and what it does together with the others."""

    rank: int = 0  # the process's number, from 0
    size: int = 1  # the number of processes of the run
    local_rank: int = 0  # its number among those of its machine
    local_size: int = 1  # the number of processes on its machine
    # Where processes leave words for each other without waiting; None for a process alone.
    store: Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes what belongs to the run as a whole."""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh | None:
        """All processes of the run in one dimension, to shard a model over; None without a group.

        The first use is together.
        """
        if self.store is None:
            return None
        import torch
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (self.size,))

    def device(self, wanted: str) -> torch.device:
        """The device that ``model.device`` means here; ``auto`` is a GPU where there is one.

        Several processes of a machine take a GPU each. Raises UserError for a device that isn't
        there.
        """
        import torch

        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cuda" and self.store is not None:
            wanted = f"cuda:{self.local_rank}"
        try:
            device = torch.device(wanted)
            if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
                return device  # a tensor there would take hold of the GPU
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.device={wanted} must be a device of this machine; got {reason}. "
                "Pass model.device=auto."
            ) from None
        return device

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of items that are dealt out to all: every ``size``-th."""
        return items[self.rank :: self.size]

    def piece(self, items: S) -> S:
        """This process's share of items that are cut into one piece for each, in order."""
        start, stop = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[start:stop]  # type: ignore[return-value]  # a slice is of the same type

    def deal(self, key: str, count: int) -> Iterator[int]:
        """Claims the numbers of ``range(count)``, each for one process: for that which is free.

        key: names the work. What was claimed under a key stays claimed as long as the group lives.
        """
        if self.store is None:
            yield from range(count)
            return
        while (number := self.store.add(f"dealt/{key}", 1) - 1) < count:
            yield number

    def tally(self, key: str) -> Callable[[int], int]:
        """A function that adds to a number of all processes, from 0, and returns what it is then.

        key: names the number, as long as the group lives.
        """
        store = self.store
        if store is not None:
            return lambda n: store.add(f"tally/{key}", n)
        total = 0

        def add(n: int) -> int:
            nonlocal total
            total += n
            return total

        return add

    def agree(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
        """What all processes do: stop if any was told to, and save if the main one finds it due.

        They agree together.
        """
        if self.size == 1:
            return stop, due
        import torch
        import torch.distributed as dist

        words = torch.tensor([stop, due and self.is_main], dtype=torch.int32)
        dist.all_reduce(words, op=dist.ReduceOp.MAX)
        return bool(words[0]), bool(words[1])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values, CPU tensors of one shape, together."""
        if self.size > 1:
            import torch.distributed as dist

            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank, in every process, together."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process, together."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        told: T = broadcast_object_list([value])[0]
        return told

    def first(self, make: Callable[[], T]) -> T:
        """What the main process makes, in every process, together.

        Raises its UserError in every process.
        """
        made: T | None = None
        wrong: UserError | None = None
        if self.is_main:
            try:
                made = make()
            except UserError as error:
                wrong = error
        made, wrong = self.broadcast((made, wrong))
        if wrong is not None:
            raise wrong
        return made  # type: ignore[return-value]  # None only where ``make`` returns None

    def each(self, make: Callable[[], T]) -> list[T]:
        """What every process makes, by rank, in every process, together.

        Raises the first one's UserError in every process. ``make`` itself waits for no other.
        """
        made: T | UserError
        try:
            made = make()
        except UserError as error:
            made = error
        results = self.gather(made)
        for result in results:
            if isinstance(result, UserError):
                raise result
        return results  # type: ignore[return-value]  # there is no UserError among them

    def barrier(self) -> None:
        """Returns when all processes have come here, together."""
        self.agree(stop=False, due=False)


ALONE = Process()


@contextmanager
def joined() -> Iterator[Process]:
    """Joins the group that the environment describes, and leaves it at the end.

    The environment has the variables of torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT. Without them the process is ``ALONE``. A process that fails doesn't leave the
    group: the others might wait for it in there, and learn of it by its end.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    PartialState(cpu=not gpu)  # accelerate takes over the group that it finds
    yield Process(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size)), store)
    PartialState._reset_state()
    dist.destroy_process_group()


def usable_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has.

    Not every cluster binds a job to the cores it has asked for.
    """
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(bound, int(os.environ.get("SLURM_CPUS_PER_TASK", bound)))
