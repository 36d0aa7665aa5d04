"""In which way a model can be decoded: the first that gives what the model gives by itself.

Segments (``shared_prompt``) hold no state of recurrent layers or convolutions, no windows and no
biases that attention has to add, and some models don't call attention through transformers'
interface. Others make no cache, or one that can't be copied (``own_cache``). It is shown, not
assumed: see ``policy.probe``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from reasonrl.policy.probe import (
    PROMPT_OF_ROW,
    disagreement,
    evaluating,
    plain_logits,
    probe,
    short_windows,
)
from reasonrl.sampling.decoding import Decoding
from reasonrl.sampling.own_cache import by_own_cache
from reasonrl.sampling.shared_prompt import by_segments
from reasonrl.util.errors import UserError


class Found(NamedTuple):
    """The way in which a model is decoded."""

    decoding: Decoding
    why_not_segments: str | None  # a clause; None: it is decoded by segments


def find_decoding(model: PreTrainedModel) -> Found:
    """How the model is decoded. Raises UserError if no way gives what the model gives by itself."""
    if (by_own := why_not_by_segments(model)) is None:
        return Found(by_segments, None)
    in_parts = partial(by_own_cache, prefill_tokens=4)  # as it reads long prompts
    if (neither := _why_not(model, in_parts)) is None:
        return Found(by_own_cache, by_own)
    raise UserError(
        "model must give the same token by token as in one pass; got "
        f"model_type={model.config.model_type}, which doesn't. By segments: {by_own}. With its own "
        f"cache: {neither}. Take another model, such as Llama or Qwen."
    )


def why_not_by_segments(model: PreTrainedModel) -> str | None:
    """What keeps a model from being read by segments, as a clause; None: nothing does."""
    return other_layers(model.config) or _why_not(model, by_segments)


def other_layers(config: PreTrainedConfig) -> str | None:
    """A clause on layers without full attention, or with more than that; None: there are none."""
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    return f"it has layers of {' and '.join(sorted(kinds))}" if kinds else None


def _why_not(model: PreTrainedModel, decoding: Decoding) -> str | None:
    """What keeps a model from being decoded so, as a clause; None: nothing does.

    A few tokens are decoded after prompts that they share, on the weights as they are, and compared
    with plain passes. The model is left as it was.
    """
    with torch.inference_mode(), short_windows(model.config), evaluating(model):
        plain = torch.cat(plain_logits(model))
        try:
            decoded = torch.cat(_decoded(model, decoding))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models that don't hand down what they are given raise anything
            return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        gap = disagreement(decoded, plain, model.dtype)
    return None if gap is None else f"its logits are then off by {gap:.1%} of their spread"


def _decoded(model: PreTrainedModel, decoding: Decoding) -> list[Tensor]:
    """The logits of ``plain_logits``, decoded as ``TransformersEngine`` does."""
    prompts, completions = probe(model)
    rows = list(range(len(completions)))
    with decoding(model, prompts) as begin:
        decoder, logits, rests = begin(prompts)
        copies = torch.tensor(PROMPT_OF_ROW, device=model.device)
        decoder.select(copies)
        logits = logits[copies]
        unread = [len(rests[number]) for number in PROMPT_OF_ROW]
        left = [
            [*rests[number], *ids] for number, ids in zip(PROMPT_OF_ROW, completions, strict=True)
        ]
        found: list[list[Tensor]] = [[] for _ in rows]
        for step in range(max(map(len, left)) + 1):
            for row, of_row in zip(rows, logits, strict=True):
                if step >= unread[row]:
                    found[row].append(of_row)
            kept = [place for place, row in enumerate(rows) if step < len(left[row])]
            if not kept:
                break
            if len(kept) < len(rows):
                decoder.select(torch.tensor(kept, device=model.device))
                rows = [rows[place] for place in kept]
            token_ids = torch.tensor([left[row][step] for row in rows], device=model.device)
            logits = decoder.step(token_ids)
    return [torch.stack(of_row).float() for of_row in found]
