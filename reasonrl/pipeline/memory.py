"""What a run holds in the memory of each of its GPUs, by term, from the sizes of its model.

There are N GPUs. P are the parameters of the model, L those of one of its layers, R those of its
embeddings, output and last norm, B those of the value function's layers; K are those that train: P,
LoRA's adapters, the top layers, or none. C are the bytes of a number that is computed with.

    weights, gradients, Adam  (16 K + C · what doesn't train) / N
    value function            16 B / N
    reference                 C P / N
    gathered layers           C (2 L + R), and gradients of a layer and of R: (C + 4) (L + R);
                              LoRA: those of adapters, C L, and of a value layer, (C + 4) L
    activations               of each token what enters each layer, C · hidden size, and all that
                              one layer keeps; without checkpointing what all layers keep
    log-probabilities         of 512 tokens at a time: scores in C, and thrice in float32
    reward model              C P
    policy to sample with     C P; PPO holds it beside all that its learner keeps between steps
    row                       keys and values of a completion that is as long as it may be

Of a model below 10⁹ parameters all layers are gathered at once: 2 C (P + B), for what is gathered
is copied, and then gradients take the copy's place. Once activations are gone, these are reduced:
(C + 4 + 8 / N) (K + B). On one GPU it isn't in shards at all: its frozen weights and its reference
are in float32, a copy of all weights in C takes the place of gathered layers, and all tokens of a
micro-batch are scored at once. Nothing is checkpointed.

A layer keeps what its backward pass reads, and its attention is a fused kernel, which keeps no
scores. What kernels need meanwhile, and what the allocator loses, isn't counted: a share of each
GPU is left free for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from reasonrl.config.algorithm.base import Algorithm, Footprint
from reasonrl.config.model import LARGE, ShapeConfig
from reasonrl.config.sampler.base import MOST_ROWS
from reasonrl.config.schema import EvaluateConfig, TrainConfig
from reasonrl.util.errors import UserError

C = TypeVar("C", bound=EvaluateConfig)

GB = 1e9
FLOAT32 = 4
BYTES = {"float32": FLOAT32, "bfloat16": 2}
LOGPROB_TOKENS = 512  # whose log-probabilities are computed at a time

EVALUATION = Footprint("nothing", "apart")  # of one by itself

USABLE = 0.92  # of a GPU's memory
DECODING_BYTES = 2e9  # what sampling needs beside weights, keys and values
FEWEST_ROWS = 16  # completions to sample at a time; with fewer most of the time is lost
NUMBERS_OF_GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_OF_A_NODE = 8
FEW_TOKENS = 2048  # of a micro-batch, where memory is short
SIZES_GB = (24, 40, 48, 80, 141, 180)  # of GPUs that there are


@dataclass(frozen=True)
class Memory:
    """Bytes in each GPU of a run, by term."""

    learning: dict[str, float]  # while it learns; empty where it doesn't
    sampling: dict[str, float]  # while it samples, rows left out; empty where it doesn't
    row: float  # of one completion of full length
    usable: float

    @property
    def rows(self) -> int:
        """The completions that can be sampled at a time."""
        if not self.sampling:
            return 0
        free = self.usable - DECODING_BYTES - sum(self.sampling.values())
        return max(0, min(MOST_ROWS, int(free / self.row)))

    @property
    def most(self) -> float:
        """What is held when most is, with as few rows as are worth sampling."""
        rows = DECODING_BYTES + FEWEST_ROWS * self.row if self.sampling else 0
        return max(sum(self.learning.values()), sum(self.sampling.values()) + rows)

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for it."""
        return self.most <= self.usable


def memory_of(config: TrainConfig, shape: ShapeConfig) -> Memory:
    """What a run holds in each of the GPUs that its model asks for."""
    return _memory(config, shape, config.algorithm.footprint(), is_judged(config))


def _memory(
    config: EvaluateConfig, shape: ShapeConfig, run: Footprint, reward_model: bool
) -> Memory:
    asked = config.model.resources
    return memory(
        shape,
        run,
        asked.all_gpus,
        asked.gpu_gb,
        BYTES[config.model.compute_dtype],
        max_new_tokens=config.dataset.max_new_tokens,
        reward_model=reward_model,
    )


def with_batch_size(
    config: C, shape: ShapeConfig | None, run: Footprint, *, reward_model: bool
) -> C:
    """The configuration with a number for ``sampler.batch_size=auto``: what has room in a GPU.

    Where the model asks for no GPU, or its shape isn't known, it stays as it is.

    run: what is held beside; EVALUATION for an evaluation by itself.
    reward_model: whether a reward model of the same size is there too.
    """
    if config.sampler.batch_size != "auto" or not config.model.resources.gpus or shape is None:
        return config
    rows = _memory(config, shape, run, reward_model).rows
    sampler = dataclasses.replace(config.sampler, batch_size=max(1, rows))
    return dataclasses.replace(config, sampler=sampler)


def memory(
    shape: ShapeConfig,
    run: Footprint,
    gpus: int,
    gpu_gb: float,
    compute: int,
    *,
    max_new_tokens: int,
    reward_model: bool = False,
) -> Memory:
    """What a run holds in each of its GPUs, as the module's docstring says it.

    compute: the bytes of a number that is computed with.
    reward_model: whether a reward model of the same size scores the completions.
    """
    whole, layer, outer = shape.num_parameters, shape.layer_parameters, shape.outer_parameters
    trained = trained_parameters(shape, run)
    frozen = whole if run.trains == "lora" else whole - trained
    branch, copy = run.value_layers * layer, compute * whole
    sharded = gpus > 1 or whole >= LARGE
    frozen_bytes = compute if sharded else FLOAT32
    judge = {"reward model": reward_model * copy}
    state = {
        "weights": (FLOAT32 * trained + frozen_bytes * frozen) / gpus,
        "gradients": FLOAT32 * trained / gpus,
        "Adam": 2 * FLOAT32 * trained / gpus,
        "value function": 4 * FLOAT32 * branch / gpus,
        "reference": run.reference * frozen_bytes * whole / gpus,
    }
    cast = copy if compute < FLOAT32 else 0
    scored = LOGPROB_TOKENS if sharded else run.micro_batch_tokens
    activations = run.micro_batch_tokens * _activations(shape, run, compute)
    logprobs = scored * shape.vocab_size * (compute + 3 * FLOAT32)
    if whole >= LARGE:
        gathered = compute * (2 * layer + outer) + _gathered_gradients(shape, run, compute)
    else:
        reduced = (compute + FLOAT32 + 2 * FLOAT32 / gpus) * (trained + branch)
        read = 2 * compute * (whole + branch)
        gathered = max(read, reduced - activations - logprobs)
    learning = {
        **state,
        "gathered layers": gathered if sharded else 0,
        "weights as computed with": 0 if sharded else cast,
        "activations": activations,
        "log-probabilities": logprobs,
        **judge,
    }
    gradients = FLOAT32 * (trained + branch) / gpus  # which no optimizer step leaves behind
    beside = sum(state.values()) - gradients if run.samples == "while it learns" else 0
    sampling = {"learner between steps": beside, "policy to sample with": copy, **judge}
    return Memory(
        learning={} if run.trains == "nothing" else learning,
        sampling={} if run.samples == "never" else sampling,
        row=2 * compute * shape.num_hidden_layers * shape.key_size * max_new_tokens,
        usable=USABLE * gpu_gb * GB,
    )


def trained_parameters(shape: ShapeConfig, run: Footprint) -> int:
    """The parameters of the policy, or on it, that train; a value function's are others."""
    return {
        "nothing": 0,
        "head": 0,
        "lora": shape.lora_parameters(run.lora_rank),
        "top": run.trainable_layers * shape.layer_parameters,
        "all": shape.num_parameters,
    }[run.trains]


def learning_layers(shape: ShapeConfig, run: Footprint) -> int:
    """The layers of the policy that a backward pass goes through."""
    return {"head": 0, "top": run.trainable_layers}.get(run.trains, shape.num_hidden_layers)


def is_checkpointed(shape: ShapeConfig, run: Footprint) -> bool:
    """Whether layers are computed again in their backward passes."""
    if run.checkpoint_layers is None:
        return shape.num_parameters >= LARGE
    return run.checkpoint_layers


def is_judged(config: TrainConfig) -> bool:
    """Whether a reward model scores the completions of a run."""
    reads = config.algorithm.reads_reward != "nothing"
    return reads and config.reward.judges_steps_by == "reward model"


def _gathered_gradients(shape: ShapeConfig, run: Footprint, compute: int) -> float:
    layer = (compute + FLOAT32) * shape.layer_parameters
    outer = (compute + FLOAT32) * shape.outer_parameters
    if run.trains == "lora":
        return compute * shape.layer_parameters + (layer if run.value_layers else 0)
    return {"all": layer + outer, "top": layer}.get(run.trains, 0)


def _activations(shape: ShapeConfig, run: Footprint, compute: int) -> float:
    """Bytes that a token of a micro-batch leaves for the backward pass.

    A norm keeps its input in float32, and its result before it is weighed; matrices keep their
    inputs, attention its queries, keys, values and result, and the gated product its factors. That
    of packed rows keeps the result twice, and copies of a prompt's keys and values for each of its
    completions (``learning.attention``); here both are equally long.
    """
    hidden, heads = shape.hidden_size, shape.query_size + shape.key_size
    copies = 3 * shape.query_size if run.samples == "while it learns" else 0
    norms = 2 * (FLOAT32 + compute) * hidden
    layer = norms + compute * (2 * hidden + 2 * heads + copies + 4 * shape.intermediate_size)
    layers = learning_layers(shape, run) + run.value_layers
    if is_checkpointed(shape, run):
        return compute * hidden * layers + layer
    return layer * max(1, layers)


def fewest_gpus(config: TrainConfig, shape: ShapeConfig) -> int | None:
    """The smallest number of GPUs of the size asked for that a run fits; None: there is none."""
    return next((n for n in NUMBERS_OF_GPUS if _on(config, shape, gpus=n, nodes=1).fits), None)


def check_memory(config: TrainConfig, shape: ShapeConfig) -> None:
    """Raises UserError if a run doesn't fit the GPUs that its model asks for; says what would fit.

    A run that asks for none always fits.
    """
    asked = config.model.resources
    if not asked.gpus:
        return
    held = memory_of(config, shape)
    if held.fits:
        return
    remedies = list(_remedies(config, shape))
    raise UserError(
        f"model.resources.gpus={asked.all_gpus} must have room for "
        f"algorithm={config.algorithm.name} model={config.model.name}: {held.most / GB:.0f} GB on "
        f"each; got {asked.gpu_gb} GB, of which {held.usable / GB:.0f} can be used. "
        + (f"Pass {', or '.join(remedies)}." if remedies else "Pass a smaller model.")
    )


def _remedies(config: TrainConfig, shape: ShapeConfig) -> Iterator[str]:
    """Each of the changes that makes a run fit by itself, as one passes it."""
    algorithm, asked = config.algorithm, config.model.resources
    if number := fewest_gpus(config, shape):
        nodes = -(-number // GPUS_OF_A_NODE)
        several = f"model.resources.nodes={nodes} " if nodes != asked.nodes else ""
        yield f"{several}model.resources.gpus={number // nodes}"
    larger = (size for size in SIZES_GB if size > asked.gpu_gb)
    if size := next((s for s in larger if _on(config, shape, gpu_gb=s).fits), None):
        yield f"model.resources.gpu_gb={size}"
    for key, value in (("trainable", "lora"), ("micro_batch_tokens", FEW_TOKENS)):
        if getattr(algorithm, key, value) != value:
            changed: Algorithm = dataclasses.replace(algorithm, **{key: value})  # type: ignore[type-var]
            if memory_of(dataclasses.replace(config, algorithm=changed), shape).fits:
                yield f"{key}={value} for {algorithm.name}"


def _on(config: TrainConfig, shape: ShapeConfig, **resources: int) -> Memory:
    """What a run holds in each GPU if its model asks for other ones."""
    asked = dataclasses.replace(config.model.resources, **resources)
    model = dataclasses.replace(config.model, resources=asked)
    return memory_of(dataclasses.replace(config, model=model), shape)
