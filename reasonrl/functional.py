"""The maths, as pure functions of tensors.

Dimension letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the given ids, in float32.

    logits: (B, T, V), position t predicting token_ids[:, t]; token_ids: (B, T). Returns (B, T).
    """
    scaled = logits.float() / temperature
    loss = F.cross_entropy(scaled.flatten(0, 1), token_ids.flatten(), reduction="none")
    return -loss.view(token_ids.shape)


def masked_sum(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum of values (B, T) where loss_mask (B, T) is True, whatever stands elsewhere, NaN too."""
    return values.masked_fill(~loss_mask, 0.0).sum()
