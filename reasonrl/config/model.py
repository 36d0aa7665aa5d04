"""The settings of a model: which weights it has, and what its runs ask a cluster for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from reasonrl.config.base import IMMATERIAL, require

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ResourcesConfig:
    """What one run asks a cluster for. A run that isn't on a cluster ignores it.

    Runs that were made before there were ``nodes`` and ``gpu_gb`` have neither.
    """

    gpus: int  # of each node
    cpus: int  # of each node
    memory_gb: int  # of each node, not of its GPUs
    hours: float  # the time limit
    nodes: int = 1
    gpu_gb: int = 80  # the memory of one of its GPUs


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model. Older runs have neither ``num_parameters`` nor ``resources``."""

    name: str
    path: str  # folder, hub id, .gguf file, or package:NAME for the .gguf inside a Python package
    compute_dtype: str  # of sampling, and of the learner's matrix products; weights stay float32
    # The kind of device changes the last bits all the same: see RuntimeConfig.
    device: str = field(metadata=IMMATERIAL)
    # For a plan that is made without the weights; None: the number isn't known.
    num_parameters: int | None = field(default=None, metadata=IMMATERIAL)
    resources: ResourcesConfig = field(
        default=ResourcesConfig(gpus=1, cpus=8, memory_gb=64, hours=24.0), metadata=IMMATERIAL
    )

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            self.compute_dtype in COMPUTE_DTYPES,
            f"model.compute_dtype must be one of {', '.join(COMPUTE_DTYPES)}; got "
            f"{self.compute_dtype}.",
        )
        require(
            self.num_parameters is None or self.num_parameters >= 1,
            "model.num_parameters must be null (not known) or 1 or more; got "
            f"{self.num_parameters}.",
        )
        resources = self.resources
        require(
            resources.gpus >= 0, f"model.resources.gpus must be 0 or more; got {resources.gpus}."
        )
        for name in ("nodes", "cpus", "memory_gb", "gpu_gb"):
            value = getattr(resources, name)
            require(value >= 1, f"model.resources.{name} must be 1 or more; got {value}.")
        require(
            0 < resources.hours < math.inf,
            f"model.resources.hours must be above 0; got {resources.hours}.",
        )
