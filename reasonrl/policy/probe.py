"""A few tokens that show whether a model gives the same however it is read.

Two prompts of unlike lengths begin alike, and three completions go on from them. Ways to read them
are compared with plain passes over each completion alone: whatever a way leaves out of a model,
such as a recurrent state, a window or a bias, moves all logits that come after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

# How far logits may be off, relative to their spread over the vocabulary. Rounding makes 1e-6 and
# 1e-2 of it, and reading a model wrongly about 1.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}
# Tokens are shares of the vocabulary, so that any model knows them.
BEGINNING = (0.1, 0.7, 0.4, 0.9, 0.3, 0.6, 0.2, 0.8, 0.15, 0.55, 0.35, 0.95, 0.45, 0.75, 0.25, 0.65)
ENDINGS = ((0.2, 0.6, 0.3), (0.8,))
PROMPT_OF_ROW, COMPLETIONS = (0, 0, 1), ((0.5, 0.15), (0.35, 0.85, 0.1), (0.75, 0.25))
WINDOW = 4  # tokens: shorter than the prompts, so that a window that is left out shows


def probe(model: PreTrainedModel) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The prompts and the completions, in a model's token ids; see ``PROMPT_OF_ROW``."""
    size = model.config.get_text_config(decoder=True).vocab_size

    def ids(shares: Sequence[float]) -> tuple[int, ...]:
        return tuple(int(share * size) for share in shares)

    return [ids(BEGINNING + ending) for ending in ENDINGS], [ids(shares) for shares in COMPLETIONS]


@torch.no_grad()
def plain_logits(model: PreTrainedModel) -> list[Tensor]:
    """Of each completion the logits (1 + tokens, V) before, after the first, … the last token."""
    prompts, completions = probe(model)
    found = []
    for number, completion in zip(PROMPT_OF_ROW, completions, strict=True):
        ids = torch.tensor([prompts[number] + completion], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        found.append(logits[len(prompts[number]) - 1 :].float())
    return found


def disagreement(found: Tensor, plain: Tensor, dtype: torch.dtype) -> float | None:
    """How far logits are off, as a share of their spread; None: no farther than by rounding.

    dtype: of the model's weights. Weights that aren't finite are no fault of the architecture.
    """
    gap = (found - plain).norm() / (plain - plain.mean(dim=-1, keepdim=True)).norm()
    return None if gap.isnan() or gap < TOLERANCES[dtype] else float(gap)


@contextmanager
def short_windows(config: PreTrainedConfig) -> Iterator[None]:
    """In the block a model of this config attends to few tokens where it attends to some alone."""
    text = config.get_text_config(decoder=True)
    before = {
        name: size
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(size := getattr(text, name, None), int) and size > WINDOW
    }
    try:
        for name in before:
            setattr(text, name, WINDOW)
        yield
    finally:
        for name, size in before.items():
            setattr(text, name, size)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """In the block the model is in eval mode; then each of its modules is as before."""
    training: list[tuple[nn.Module, bool]] = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
