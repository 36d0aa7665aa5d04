"""Draw one token per row, reproducibly, from the full vocabulary.

Legend: R rows, V vocabulary, B vocabulary ids in a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reasonrl.util.errors import UserError

BLOCK = 256  # about the square root of a large vocabulary, so that both searches are short
CHUNK_BYTES = 8 << 20  # float32 logits worked on at once: several passes run over them in cache


def uniforms(rows: Sequence[tuple[int, int]], steps: int, *, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), float32, shape (R, steps).

    rows: (prompt index, sample index) of each row. Entry (row, step) depends on seed, those two and
    step alone, so a row's draws don't change with the batch it is in or with ``steps``.
    """
    table = np.empty((len(rows), steps), dtype=np.float32)
    for line, (prompt_index, sample_index) in zip(table, rows, strict=True):
        key = np.array([seed % 2**64, prompt_index << 32 | sample_index], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(dtype=np.float32, out=line)
    return torch.from_numpy(table)


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The token whose share of softmax(logits / temperature) holds ``uniform``, and its logprob.

    logits: (R, V), any float type. uniform: (R,) in [0, 1). Returns (R,) ids and (R,) float32
    log_softmax(logits / temperature) of them. A token of probability 0 is never drawn. Raises
    UserError for logits that aren't finite; −∞, a probability of 0, is allowed.
    """
    rows_at_once = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    parts = [
        _draw_chunk(part.float() / temperature, u)
        for part, u in zip(logits.split(rows_at_once), uniform.split(rows_at_once), strict=True)
    ]
    return torch.cat([ids for ids, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row and its float32 log_softmax(logits): (R, V) -> (R,), (R,).

    Raises UserError for logits that aren't finite, as ``draw`` does.
    """
    logits = logits.float()
    ids, total = logits.argmax(dim=1), logits.logsumexp(dim=1)
    _check_finite(total)
    return ids, _at(logits, ids) - total


def _draw_chunk(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Search the cumulative sums of blocks, then within one block.

    ``torch.multinomial``, and one cumulative sum over a whole vocabulary, cost more than the
    model's matrix products.
    """
    probabilities = logits.softmax(dim=1)
    padding = -logits.shape[1] % BLOCK
    padded = F.pad(probabilities, (0, padding)) if padding else probabilities
    blocks = padded.unflatten(1, (-1, BLOCK))  # (R, V/B, B)
    block_ends = blocks.sum(dim=2).cumsum(dim=1)
    _check_finite(block_ends[:, -1])

    block, rest = _search(block_ends, uniform * block_ends[:, -1])
    within, _ = _search(blocks[torch.arange(len(blocks)), block].cumsum(dim=1), rest)
    ids = block * BLOCK + within
    return ids, _at(probabilities, ids).log()


def _check_finite(totals: Tensor) -> None:
    """Raises UserError unless all totals of a distribution are finite."""
    if not totals.isfinite().all():
        raise UserError(
            "the policy's logits must be finite; got NaN or ∞. Check its weights: learning may "
            "have diverged (lower the learning rate), or pass model.compute_dtype=float32."
        )


def _search(ends: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of ``ends`` (R, n) that holds ``target`` (R,), and what is left of it there.

    Rounding may put the target on the last end; one float below it lies in the last interval that
    isn't empty.
    """
    below_last = torch.nextafter(ends[:, -1], torch.zeros_like(target))
    target = torch.minimum(target, below_last)
    index = torch.searchsorted(ends, target[:, None], right=True)[:, 0]
    start = torch.where(index > 0, _at(ends, (index - 1).clamp(min=0)), 0.0)
    return index, target - start


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, None])[:, 0]
