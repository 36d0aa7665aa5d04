"""What is computed anew in the backward pass, because it takes too much memory to be kept for it.

Source: Chen et al. 2016 (arXiv 1604.06174). The gradients are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reasonrl.policy.shards import decoder_layers

CHUNK = 512  # rows


def in_chunks(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``function(*rows)`` for functions that go row by row, on at most ``CHUNK`` rows at a time.

    Whatever it holds between its arguments and its result, such as logits, is there for one chunk
    at a time, in the backward pass too. There must be at least one row.
    """
    chunks = zip(*(tensor.split(CHUNK) for tensor in rows), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


def recompute_layers(module: nn.Module) -> None:
    """Makes the decoder layers of a module keep their inputs alone for the backward pass.

    It holds in whichever mode the module is, and not where there is no backward pass.
    """
    for layer in decoder_layers(module):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
