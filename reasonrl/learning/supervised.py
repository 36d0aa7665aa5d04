"""The learner under SFT, Expert Iteration and reward models, and its masked cross-entropy.

``fit`` trains with AdamW, a linear warm-up and a cosine decay on whatever loss it is given
gradients of. That of SFT and Expert Iteration, ``accumulate_gradients``, is the mean over an
optimizer step's completion tokens of −log π(token | what came before). A step's examples are sorted
by length and cut into micro-batches whose gradients are summed, so padding is small and neither it
nor the cutting changes the result: every token of the step weighs the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_scheduler

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.functional import masked_sum, token_logprobs
from reasonrl.policy.policy import DTYPES, autocast
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.preemption import boundary
from reasonrl.types import Completion

AnySized = TypeVar("AnySized", bound=Sized)
# Adds the gradient of the loss of an optimizer step's examples to the model's; returns that loss.
# Takes the model, the examples, the most tokens of a micro-batch and the dtype to compute in.
Gradients = Callable[[Any, Sequence[Any], int, torch.dtype], float]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids to learn from. Only the completion is trained on; it ends with EOS.

    loss_mask: of the completion's ids, those that are; None: all of them.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...] | None = None

    @property
    def num_targets(self) -> int:
        return len(self.completion_ids) if self.loss_mask is None else sum(self.loss_mask)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Examples as a model reads them, padded on the right: no real token sees what is after it.

    S leaves out of T what all prompts of the batch cover.
    """

    input_ids: Tensor  # (B, T)
    target_ids: Tensor  # (B, S), the ids that the model's last S positions predict
    loss_mask: Tensor  # (B, S), True for what trains


def with_eos(completion: Completion, eos_token_id: int) -> tuple[int, ...]:
    """Its token ids as they are to be learnt: what a delimiter ended is given its EOS."""
    ending = (eos_token_id,) if completion.finish_reason == "stop" else ()
    return completion.token_ids + ending


def num_steps(num_examples: int, learner: LearnerConfig) -> int:
    """Optimizer steps of a fit. The last step of an epoch may be smaller; nothing is dropped."""
    return learner.epochs * -(-num_examples // learner.batch_size)


def collate(examples: Sequence[Example]) -> TokenBatch:
    longest = max(map(len, examples))
    shortest_prompt = min(len(e.prompt_ids) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt_ids + example.completion_ids)
        own = torch.tensor(True if example.loss_mask is None else example.loss_mask)
        mask[row, len(example.prompt_ids) : len(example)] = own
    return TokenBatch(ids[:, :-1], ids[:, shortest_prompt:], mask[:, shortest_prompt:])


def micro_batches(examples: Iterable[AnySized], max_tokens: int) -> Iterator[list[AnySized]]:
    """Sorted by length, cut so that two or more never hold over max_tokens with padding."""
    batch: list[AnySized] = []
    for example in sorted(examples, key=len):
        if batch and (len(batch) + 1) * len(example) > max_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def accumulate_gradients(
    model: PreTrainedModel,
    examples: Sequence[Example],
    max_tokens: int,
    compute_dtype: torch.dtype,
) -> float:
    """Adds the gradient of the mean completion-token loss of ``examples``; returns that loss."""
    num_tokens = sum(e.num_targets for e in examples)
    total = 0.0
    for chunk in micro_batches(examples, max_tokens):
        batch = collate(chunk)
        device = model.device
        with autocast(device, compute_dtype):
            logits = model(
                input_ids=batch.input_ids.to(device),
                logits_to_keep=batch.target_ids.shape[1],
                use_cache=False,
            ).logits  # (B, S, V)
        logprobs = token_logprobs(logits, batch.target_ids.to(device))
        loss = -masked_sum(logprobs, batch.loss_mask.to(device)) / num_tokens
        loss.backward()
        total += loss.item()
    return total


def make_optimizer(
    trained: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    learner: LearnerConfig,
    total_steps: int,
) -> tuple[AdamW, LRScheduler]:
    """AdamW, and its learning rate: a linear warm-up, then a cosine decay over ``total_steps``.

    trained: parameters, or groups of them with options of their own.
    """
    optimizer = AdamW(trained, lr=learner.learning_rate, betas=(0.9, 0.95),
                      weight_decay=learner.weight_decay, fused=True)  # fmt: skip
    scheduler = get_scheduler(
        "cosine_warmup_with_min_lr",
        optimizer,
        # The last of these steps is the one at the peak, and the last of all at the final rate.
        num_warmup_steps=max(1, round(learner.warmup_fraction * total_steps)),
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"min_lr": learner.final_learning_rate},
    )
    return optimizer, scheduler


def fit(
    model: nn.Module,
    examples: Sequence[Any],
    learner: LearnerConfig,
    *,
    gradients: Gradients | None = None,
    seed: int,
    compute_dtype: str,
    checkpoints: Checkpoints,
    checkpoint_seconds: float,
    log: MetricsLog,
    log_prefix: str,
    log_start: int,
    first_step: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Trains ``model`` in place. Goes on from the latest of ``checkpoints`` where there is one.

    Parameters that don't require a gradient are left alone.

    gradients: of what is minimised, over examples of its kind; None: ``accumulate_gradients``.
    seed: decides the order of the examples, together with the epoch.
    log_prefix, first_step: metrics are logged as ``<prefix>/loss`` and so on, at this offset.
    log_start: position of ``log`` where this fit's lines begin; what a kill left there goes.
    on_step: called with the number of optimizer steps just finished (several after a resume).
    Raises Preempted after a step, with a checkpoint of it, if told to stop.
    """
    torch.manual_seed(seed)  # dropout: not to depend on what this process drew before
    add_gradients: Gradients = gradients or accumulate_gradients
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total_steps = num_steps(len(examples), learner)
    optimizer, scheduler = make_optimizer(trained, learner, total_steps)
    start = 0
    if (checkpoint := checkpoints.latest()) is not None:
        state = checkpoint.restore(model, optimizer)
        scheduler.load_state_dict(state["scheduler"])
        log_start, start = state["log_position"], checkpoint.step
        if on_step:
            on_step(start)
    log.rewind(log_start)
    saved = time.monotonic()

    def save(steps: int) -> None:
        nonlocal saved
        state = {"scheduler": scheduler.state_dict(), "log_position": log.position()}
        checkpoints.save(steps, model=model, optimizer=optimizer, state=state)
        saved = time.monotonic()

    model.train()
    for step, batch in enumerate(minibatches(examples, learner.epochs, learner.batch_size, seed)):
        if step < start:
            continue
        loss = add_gradients(model, batch, learner.micro_batch_tokens, DTYPES[compute_dtype])
        norm = torch.nn.utils.clip_grad_norm_(trained, learner.max_grad_norm)
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        log.log(
            first_step + step + 1,
            {
                f"{log_prefix}/loss": loss,
                f"{log_prefix}/grad_norm": norm.item(),
                f"{log_prefix}/learning_rate": float(learning_rate),
            },
        )
        if on_step:
            on_step(1)
        boundary(partial(save, step + 1), due=time.monotonic() - saved >= checkpoint_seconds)
    model.eval()


def minibatches(
    examples: Sequence[AnySized], epochs: int, size: int, seed: int
) -> Iterator[list[AnySized]]:
    """Of every epoch all examples, ``size`` at a time, in an order that seed and epoch decide."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        for start in range(0, len(examples), size):
            yield [examples[i] for i in order[start : start + size]]
