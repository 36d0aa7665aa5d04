"""The learner under SFT, Expert Iteration, RCRL and reward models, and its masked cross-entropy.

``fit`` takes the steps of an ``Optimization`` on whatever loss it is given gradients of. The loss
of SFT, Expert Iteration and RCRL is the mean over an optimizer step's completion tokens of
−log π(token | what came before), each token's times the weight of its example;
``accumulate_gradients`` adds its gradient.

A step's examples are sorted by length and cut into micro-batches, whose gradients are summed. So
there is little padding, and neither padding nor cutting changes the result: every token of the step
weighs the same, but for its example's weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.functional import masked_sum, token_logprobs
from reasonrl.learning.optimization import Optimization
from reasonrl.learning.recompute import in_chunks
from reasonrl.policy.head import head_logits
from reasonrl.policy.policy import autocast
from reasonrl.policy.shards import is_sharded
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion

AnySized = TypeVar("AnySized", bound=Sized)
# Adds the gradient of the loss of an optimizer step's examples to the model's; returns that loss.
Gradients = Callable[[Sequence[Any]], float]


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run was at some moment."""

    step: int = 0  # optimizer steps taken
    log_position: int = 0  # the position in the log of its metrics


BEGINNING = Position()


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids to learn from: only the completion is trained on, and it ends as one does."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...] | None = None  # which of the completion's train; None: all of them
    weight: float | None = None  # of each of its tokens in the loss; None: 1

    @property
    def num_targets(self) -> int:
        return len(self.completion_ids) if self.loss_mask is None else sum(self.loss_mask)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Examples as a model reads them, padded on the right: no real token sees the padding.

    Of the T positions only the last S are predicted: those before belong to prompts in every row.
    """

    input_ids: Tensor  # (B, T)
    target_ids: Tensor  # (B, S), the ids that the model's last S positions predict
    loss_mask: Tensor  # (B, S), True for what trains
    weights: Tensor | None = None  # (B, 1), float64, of the examples; None: all weigh 1


def with_end(completion: Completion, end_token: int) -> tuple[int, ...]:
    """The completion's token ids to learn, as they were sampled, and an end where it has none.

    One that a stop string ended has none: the policy learns to end there by itself.
    """
    ending = (end_token,) if completion.finish_reason == "stop" else ()
    return (*completion.token_ids, *ending)


def num_steps(num_examples: int, learner: LearnerConfig) -> int:
    """The optimizer steps of a fit: an epoch's last step may be smaller, and none is dropped."""
    return learner.epochs * -(-num_examples // learner.batch_size)


def collate(examples: Sequence[Example]) -> TokenBatch:
    """Pads the examples into one batch."""
    longest = max(map(len, examples))
    shortest_prompt = min(len(e.prompt_ids) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt_ids + example.completion_ids)
        own = torch.tensor(True if example.loss_mask is None else example.loss_mask)
        mask[row, len(example.prompt_ids) : len(example)] = own
    weights = [[1.0 if e.weight is None else e.weight] for e in examples]
    return TokenBatch(
        ids[:, :-1],
        ids[:, shortest_prompt:],
        mask[:, shortest_prompt:],
        torch.tensor(weights, dtype=torch.float64)
        if any(e.weight is not None for e in examples)
        else None,
    )


def micro_batches(examples: Iterable[AnySized], max_tokens: int) -> Iterator[list[AnySized]]:
    """Sorts the examples by length and cuts them into batches of at most max_tokens with padding.

    A single example that is longer is a batch of its own.
    """
    batch: list[AnySized] = []
    for example in sorted(examples, key=len):
        if batch and (len(batch) + 1) * len(example) > max_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def shares(
    examples: Iterable[AnySized], max_tokens: int, process: Process
) -> Iterator[tuple[list[AnySized], float]]:
    """This process's micro-batches of examples that several read together, each with its weight.

    Each process takes every N-th example by length, so that all have about as much to read. In
    every pass all of them take part: one that has read its own reads an example once more, with
    weight 0. The other weights are N, which makes a sum of what is averaged over processes.
    """
    ordered = sorted(examples, key=len)
    plans = [
        list(micro_batches(ordered[rank :: process.size], max_tokens))
        for rank in range(process.size)
    ]
    mine = plans[process.rank]
    for number in range(max(map(len, plans))):
        if number < len(mine):
            yield mine[number], float(process.size)
        else:
            yield ordered[:1], 0.0


class Reader(nn.Module):
    """A policy that reads examples: the module that a supervised learner trains."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: TokenBatch, compute_dtype: torch.dtype) -> Tensor:
        """log π (B · S,) of the targets, row by row; at the padding it means nothing."""
        device, kept = self.policy.device, batch.target_ids.shape[1]
        input_ids, target_ids = batch.input_ids.to(device), batch.target_ids.to(device).flatten()
        if is_sharded(self):
            states = self.policy.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            return in_chunks(self._logprobs, states[:, -kept:].flatten(0, 1), target_ids)
        with autocast(device, compute_dtype):
            logits = self.policy(
                input_ids=input_ids, logits_to_keep=kept, use_cache=False
            ).logits  # (B, S, V)
        return token_logprobs(logits.flatten(0, 1), target_ids)

    def _logprobs(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        return token_logprobs(head_logits(self.policy, hidden), token_ids)


def accumulate_gradients(
    reader: Reader,
    examples: Sequence[Example],
    max_tokens: int,
    compute_dtype: torch.dtype,
    process: Process = ALONE,
) -> float:
    """Adds the gradient of the mean completion-token loss of ``examples``; returns that loss.

    It is −(1 / Σ_j n_j) Σ_j w_j Σ_t log π(token t of example j), where example j has n_j tokens
    that train and the weight w_j. The divisor has no weights in it, so what an example weighs
    doesn't depend on the others of its step; the learning rate keeps its meaning where the weights
    of a training set are 1 in the mean.

    max_tokens: the most tokens of a micro-batch, see ``micro_batches``.
    process: one of those that read the examples together.
    """
    num_tokens = sum(e.num_targets for e in examples)
    total = 0.0
    for chunk, weight in shares(examples, max_tokens, process):
        batch = collate(chunk)
        logprobs = reader(batch, compute_dtype)
        if batch.weights is not None:
            weights = batch.weights.expand(batch.loss_mask.shape).flatten()
            logprobs = logprobs * weights.to(logprobs.dtype).to(logprobs.device)
        # What weighs nothing is masked: 0 · ∞ isn't 0.
        loss_mask = (batch.loss_mask.flatten() & (weight > 0)).to(logprobs.device)
        loss = -masked_sum(logprobs, loss_mask) / num_tokens
        (loss * weight).backward()
        total += loss.item()
    return process.sum(torch.tensor(total, dtype=torch.float64)).item()


def fit(
    optimization: Optimization,
    examples: Sequence[Any],
    gradients: Gradients,
    *,
    seed: int,
    start: Position = BEGINNING,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Trains a model in place, by epochs over all examples, from the latest checkpoint on.

    Metrics are logged as ``<name>/loss`` and so on, where ``name`` is the optimization's. The last
    step of an epoch says which it was, and how many tokens a second were read so far.

    gradients: adds the gradient of the loss of a step's examples, and returns that loss.
    seed: decides the order of the examples, together with the epoch.
    start: how far the run was when this fit began.
    on_step: is called with the number of optimizer steps just finished (several after a resume).

    Raises Preempted after a step, with a checkpoint of it, if the process was told to stop, and
    UserError if gradients aren't finite.
    """
    torch.manual_seed(seed)  # so that dropout doesn't depend on what this process drew before
    settings, name = optimization.settings, optimization.name
    optimization.resume(start.log_position)
    resumed_at = optimization.steps
    if resumed_at and on_step:
        on_step(resumed_at)
    optimization.model.train()
    steps_per_epoch = num_steps(len(examples), settings) // settings.epochs
    began, num_tokens = time.monotonic(), 0
    for step, batch in enumerate(minibatches(examples, settings.epochs, settings.batch_size, seed)):
        if step < resumed_at:
            continue
        loss = gradients(batch)
        learning_rate = optimization.learning_rate
        (norm,) = optimization.step()
        num_tokens += sum(map(len, batch))
        metrics = {
            f"{name}/loss": loss,
            f"{name}/grad_norm": norm,
            f"{name}/learning_rate": learning_rate,
        }
        epoch, rest = divmod(optimization.steps, steps_per_epoch)
        if rest == 0:
            metrics[f"{name}/epoch"] = epoch
            metrics["time/tokens_per_second"] = num_tokens / (time.monotonic() - began)
        optimization.log.log(start.step + optimization.steps, metrics)
        if on_step:
            on_step(1)
        optimization.save_if_due()
    optimization.model.eval()


def minibatches(
    examples: Sequence[AnySized], epochs: int, size: int, seed: int
) -> Iterator[list[AnySized]]:
    """Yields all examples in every epoch, ``size`` at a time, in an order by seed and epoch."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        for start in range(0, len(examples), size):
            yield [examples[i] for i in order[start : start + size]]
