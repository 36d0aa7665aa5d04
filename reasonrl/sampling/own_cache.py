"""Decoding with the cache that a model makes for itself, whatever its layers keep in it.

It serves models whose prompts can't be shared by segments: windows, attention sinks, recurrent
states, convolutions. Of the prompts of a batch, what all begin with is read once, and the rest of
each once; what the model keeps of it is copied for each row that goes on from it.

No row is ever padded, for a recurrent state would take in the padding. Of a batch's prompts as many
tokens are read at once as the shortest has; the others read their last tokens one at a time, while
shorter ones are answered already. So all rows of a batch have always read equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reasonrl.policy.probe import evaluating
from reasonrl.sampling.decoding import PREFILL_TOKENS, Begin, Begun, TokenIds, num_shared


@contextmanager
def by_own_cache(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],  # noqa: ARG001 (the interface's)
    *,
    prefill_tokens: int = PREFILL_TOKENS,
) -> Iterator[Begin]:
    """In the block prompts are read with the model's own cache, in eval mode.

    prefill_tokens: the most tokens of a forward pass.
    """
    with evaluating(model):
        yield partial(_begin, model, prefill_tokens)


def _begin(model: PreTrainedModel, prefill_tokens: int, prompts: Sequence[TokenIds]) -> Begun:
    decoder = OwnCache(model, prefill_tokens)
    length, shared = min(map(len, prompts)), num_shared(prompts)
    if shared:
        decoder.read(torch.tensor([prompts[0][:shared]], device=model.device))
        decoder.select(torch.zeros(len(prompts), dtype=torch.long, device=model.device))
    beginnings = [prompt[shared:length] for prompt in prompts]
    logits = decoder.read(torch.tensor(beginnings, device=model.device))
    return Begun(decoder, logits, [prompt[length:] for prompt in prompts])


class OwnCache:
    """A ``Decoder`` of rows that have all read equally many tokens."""

    def __init__(self, model: PreTrainedModel, prefill_tokens: int) -> None:
        self.model, self.prefill_tokens = model, prefill_tokens
        self._cache: Any = None

    def read(self, token_ids: Tensor) -> Tensor:
        """Append tokens to each row: (R, T) -> logits of the next, (R, V)."""
        for part in token_ids.split(max(1, self.prefill_tokens // len(token_ids)), dim=1):
            out = self.model(
                input_ids=part, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
            self._cache = out.past_key_values
        return out.logits[:, -1]

    def step(self, token_ids: Tensor) -> Tensor:
        return self.read(token_ids[:, None])

    def select(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)  # beam search repeats and drops rows, too
