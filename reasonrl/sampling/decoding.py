"""What the ways in which rows of tokens grow after prompts have in common.

    with decoding(model, prompts) as begin:
        rows = begin(some_prompts)
        logits = rows.decoder.step(token_ids)

There are two: ``shared_prompt.by_segments`` and ``own_cache.by_own_cache``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedModel

PREFILL_TOKENS = 8192  # in one forward pass: bounds its activations, which K = 1 would swell

TokenIds = Sequence[int]


class Decoder(Protocol):
    """Rows that grow token by token; at first one per prompt."""

    def step(self, token_ids: Tensor) -> Tensor:
        """Append a token to each row: (R,) -> logits of the next, (R, V)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, (R',) ascending, in this order; a row named twice becomes two."""
        ...


class Begun(NamedTuple):
    """Rows that have read their prompts, or the beginnings of these."""

    decoder: Decoder
    logits: Tensor  # (P, V), after the last token that was read
    unread: list[TokenIds]  # of each prompt what its row has yet to read


# Begins rows: one for each of some prompts.
Begin = Callable[[Sequence[TokenIds]], Begun]
# Makes a model ready to decode after all these prompts, some at a time.
Decoding = Callable[[PreTrainedModel, Sequence[TokenIds]], AbstractContextManager[Begin]]


def num_shared(prompts: Sequence[TokenIds]) -> int:
    """How many tokens all prompts begin with; the last token of each is left out."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
