"""Which processes make a run, and on which machines.

This module imports torch only where it is needed.
"""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass

from reasonrl.config.model import LARGE
from reasonrl.config.schema import EvaluateConfig
from reasonrl.util.errors import UserError

FIRST_PORT, NUM_PORTS = 20_000, 12_000  # of stores that other machines find by their Slurm job


@dataclass(frozen=True)
class Machine:
    """One of the machines whose ranks make a run together."""

    number: int = 0
    count: int = 1
    host: str = "localhost"  # where number 0 is reached
    port: int = 0  # of number 0's store; 0: any that is free, which only number 0 can know

    @property
    def is_first(self) -> bool:
        """Whether the parent on this machine owns the run."""
        return self.number == 0

    @classmethod
    def here(cls) -> Machine:
        """This machine: one of those of a Slurm job step with a task on each, or the only one."""
        step = os.environ
        count = int(step.get("SLURM_STEP_NUM_NODES", 1))
        if count == 1 or int(step.get("SLURM_STEP_NUM_TASKS", 1)) != count:
            return cls()
        port = FIRST_PORT + int(step["SLURM_JOB_ID"]) % NUM_PORTS
        return cls(int(step["SLURM_NODEID"]), count, _first_host(), port)


def _first_host() -> str:
    """The name of a Slurm job's first machine, or its address where the name isn't known."""
    nodes = os.environ["SLURM_JOB_NODELIST"]
    try:
        said = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
        name = said.stdout.split()[0]
        socket.getaddrinfo(name, None)
        return name
    except (OSError, subprocess.CalledProcessError, IndexError):
        return os.environ["SLURM_LAUNCH_NODE_IPADDR"]


def num_processes(config: EvaluateConfig) -> int:
    """The number of processes that ``runtime.processes`` means here.

    ``auto`` is as many as the GPUs that the model asks for in a Slurm job. Elsewhere it is the
    number of this machine's GPUs for a large model, and 1 for any other.
    """
    model, wanted = config.model, config.runtime.processes
    if isinstance(wanted, int):
        return wanted
    if "SLURM_JOB_ID" in os.environ:
        return model.resources.nodes * max(1, model.resources.gpus)
    if (model.num_parameters or 0) < LARGE or model.device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def are_needed(config: EvaluateConfig) -> bool:
    """Whether ranks make a run, and not the process that owns it.

    That holds for several, and for a single one that has a large model on a GPU: in a group its
    learner computes with weights that are cast one layer at a time, and scores few tokens at once.
    """
    if num_processes(config) > 1:
        return True
    model = config.model
    if (model.num_parameters or 0) < LARGE or model.device not in ("auto", "cuda"):
        return False
    import torch

    return torch.cuda.is_available()


def check(config: EvaluateConfig) -> None:
    """Raises UserError if the run's processes can't be started on this machine."""
    size, count, device = num_processes(config), Machine.here().count, config.model.device
    if size == 1:
        return
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"model.device={device} must be auto, cuda or cpu for several processes; got "
            f"runtime.processes={size}. Pass model.device=auto."
        )
    if size % count:
        raise UserError(
            f"runtime.processes={size} must be a multiple of the number of machines; got {count}. "
            f"Pass runtime.processes={count * (size // count + 1)}."
        )
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if 0 < gpus < size // count:
        raise UserError(
            f"runtime.processes={size} must leave each process a GPU of its own; this machine has "
            f"{gpus}. Pass runtime.processes={gpus * count}."
        )
