"""The process that a run is made in."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has.

    Not every cluster binds a job to those it has asked for.
    """
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(bound, int(os.environ.get("SLURM_CPUS_PER_TASK", bound)))
