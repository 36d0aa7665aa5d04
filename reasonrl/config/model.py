"""The settings of a model: which weights it has, how large, and what its runs ask a cluster for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from reasonrl.config.base import CONTENT, IMMATERIAL, require, require_name, unless

COMPUTE_DTYPES = ("float32", "bfloat16")
# Parameters, from which on a model is large. Then ``runtime.processes=auto`` takes all GPUs, layers
# are gathered one by one and computed anew, and a small model's learning rate destroys it.
LARGE = 10**9


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

    @property
    def all_gpus(self) -> int:
        """The GPUs of all nodes."""
        return self.nodes * self.gpus


# Those of a model of which nothing is known.
DEFAULT_RESOURCES = ResourcesConfig(gpus=1, cpus=8, memory_gb=64, hours=24.0)


@dataclass(frozen=True)
class ShapeConfig:
    """The sizes of a decoder of Llama's kind, by their names in its config.json.

    Norms count as parameters, biases don't.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool  # whether the output's weights are the embeddings
    head_dim: int | None = None  # None: the hidden size, shared by the heads

    @property
    def query_size(self) -> int:
        """The width of the queries of all heads of a layer."""
        return self.num_attention_heads * self._head_dim

    @property
    def key_size(self) -> int:
        """The width of the keys of all heads of a layer; the values are as wide."""
        return self.num_key_value_heads * self._head_dim

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = [(hidden, self.query_size), (self.query_size, hidden)]
        return attention + 2 * [(hidden, self.key_size)] + 3 * [(hidden, inner)]

    @property
    def layer_parameters(self) -> int:
        """The parameters of a layer."""
        return sum(i * o for i, o in self.matrices) + 2 * self.hidden_size

    @property
    def outer_parameters(self) -> int:
        """The parameters of the embeddings, of the output and of the last norm."""
        matrices = 1 if self.tie_word_embeddings else 2
        return (matrices * self.vocab_size + 1) * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        return self.num_hidden_layers * self.layer_parameters + self.outer_parameters

    def lora_parameters(self, rank: int) -> int:
        """The parameters of adapters of this rank on all matrices of the layers."""
        return self.num_hidden_layers * rank * sum(i + o for i, o in self.matrices)


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model.

    Older runs have neither ``num_parameters`` nor ``shape`` nor ``resources``.
    """

    name: str
    # Folder, hub id, .gguf file, or package:NAME for the .gguf inside a Python package. Where its
    # files lie doesn't count, for what they hold does.
    path: str = field(metadata=unless("content"))
    compute_dtype: str  # of sampling, and of the learner's matrix products; weights stay float32
    # The kind of device changes the last bits all the same: see RuntimeConfig.
    device: str = field(metadata=IMMATERIAL)
    # For a plan that is made without the weights; None: the number isn't known.
    num_parameters: int | None = field(default=None, metadata=IMMATERIAL)
    # For the same; a model that is on this machine says it itself, in its config.json.
    shape: ShapeConfig | None = field(default=None, metadata=IMMATERIAL)
    resources: ResourcesConfig = field(default=DEFAULT_RESOURCES, metadata=IMMATERIAL)
    # The hash of its weights and tokenizer, which a plan finds out; None: it isn't on this machine.
    content: str | None = field(default=None, kw_only=True, metadata=CONTENT)

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require_name("model.name", self.name)
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
        if self.shape is not None:
            for size in fields(self.shape):
                value = getattr(self.shape, size.name)
                require(
                    size.name == "tie_word_embeddings" or value is None or value >= 1,
                    f"model.shape.{size.name} must be 1 or more; got {value}.",
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
