"""Whether a model that attends by segments (``shared_prompt``) gives what it gives by itself.

Some wouldn't: models with recurrent layers or convolutions, whose state no segment holds, with
windows or biases that attention has to add, or whose attention isn't called through transformers'
interface. It is shown, not assumed: a few tokens suffice, since any of these moves all logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from reasonrl.sampling.shared_prompt import Decoder, evaluating, prefill, shared_prompt_attention
from reasonrl.util.errors import UserError

# How far logits may be off, relative to their spread over the vocabulary. Rounding makes 1e-6 and
# 1e-2 of it, and reading a model wrongly about 1.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}
# Two prompts of unlike lengths that begin alike, and what goes on from them: as shares of the
# vocabulary, so that any model knows the tokens.
BEGINNING, ENDINGS = (0.1, 0.7, 0.4, 0.9), ((0.2, 0.6, 0.3), (0.8,))
PROMPT_OF_ROW, COMPLETIONS = (0, 0, 1), ((0.5, 0.15), (0.35, 0.85), (0.75, 0.25))


def why_not_by_segments(model: PreTrainedModel) -> str | None:
    """What keeps a model from being read by segments, as a clause; None: nothing does.

    A few tokens are decoded after prompts that they share, on the weights as they are, and compared
    with a plain pass. The model is left as it was.
    """
    if others := other_layers(model.config):
        return others
    with torch.inference_mode():
        plain = _plain(model)
        try:
            decoded = _by_segments(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models that don't hand down what they are given raise anything
            return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    gap = (decoded - plain).norm() / (plain - plain.mean(dim=-1, keepdim=True)).norm()
    # Weights that aren't finite are no fault of the architecture; ``draw`` says so.
    if gap.isnan() or gap < TOLERANCES[model.dtype]:
        return None
    return f"its logits are then off by {gap:.1%} of their spread"


def other_layers(config: PreTrainedConfig) -> str | None:
    """A clause on layers without full attention, or with more than that; None: there are none."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return f"it has layers of {' and '.join(sorted(kinds))}" if kinds else None


def not_by_segments(model_type: str, why: str) -> UserError:
    """The error of a model that can't be read by segments."""
    return UserError(
        "model must be read right where a prompt's keys and values are shared by its samples; got "
        f"model_type={model_type}, which isn't: {why}. Take a model whose layers all have plain "
        "causal attention, such as Llama or Qwen."
    )


def _ids(model: PreTrainedModel, shares: Sequence[float]) -> list[int]:
    return [int(share * model.config.vocab_size) for share in shares]


def _plain(model: PreTrainedModel) -> Tensor:
    """The logits (rows, 3, V) before, after the first and after the second completion token."""
    prompts = [BEGINNING + ENDINGS[number] for number in PROMPT_OF_ROW]
    rows = [
        _ids(model, prompt + completion)
        for prompt, completion in zip(prompts, COMPLETIONS, strict=True)
    ]
    longest = max(map(len, rows))
    padded = [row + row[:1] * (longest - len(row)) for row in rows]  # causality hides the padding
    ids = torch.tensor(padded, device=model.device)
    with evaluating(model):
        logits = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits.float()
    kept = [one[len(row) - 3 : len(row)] for row, one in zip(rows, logits, strict=True)]
    return torch.stack(kept)


def _by_segments(model: PreTrainedModel) -> Tensor:
    """The same logits, decoded as ``TransformersEngine`` does."""
    device = model.device
    endings = [_ids(model, ending) for ending in ENDINGS]
    rows = torch.tensor(PROMPT_OF_ROW, device=device)
    with shared_prompt_attention(model):
        prefix = prefill(model, [_ids(model, BEGINNING)])
        prompts = prefill(model, [ending[:-1] for ending in endings], prefix)
        decoder = Decoder(model, prefix, prompts, len(endings))
        last = torch.tensor([ending[-1] for ending in endings], device=device)
        positions = torch.tensor([len(BEGINNING) + len(e) - 1 for e in endings], device=device)
        logits = [decoder.step(last, positions)[rows]]
        decoder.select(rows)
        for number, tokens in enumerate(zip(*COMPLETIONS, strict=True), start=1):
            ids = torch.tensor(_ids(model, tokens), device=device)
            logits.append(decoder.step(ids, positions[rows] + number))
    return torch.stack(logits, dim=1).float()
