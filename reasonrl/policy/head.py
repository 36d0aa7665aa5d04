"""A model's head by itself, for those who read a model's last states and want the logits of a few.

Some models do a little after the last matrix: Granite divides the logits, Cohere and Falcon-H1
multiply them, Gemma 2 and 4 bend them towards a bound. Others do more to them, which only their own
forward pass knows; ``check_head`` refuses these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reasonrl.util.errors import UserError

# By how much logits may differ from the model's own, of their largest: rounding is far below it.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def head_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """The logits (…, V) that a model gives for these of its last states (…, hidden size)."""
    head: Any = model.get_output_embeddings()
    logits: Tensor = head(states)
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(model.config, name, None)) is not None:
            logits = logits * factor
    if (divisor := getattr(model.config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (bound := getattr(model.config, "final_logit_softcapping", None)) is not None:
        logits = bound * torch.tanh(logits / bound)
    return logits


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raises UserError if ``head_logits`` aren't those of the model's own forward pass."""
    vocabulary = model.config.vocab_size
    ids = torch.tensor([[vocabulary // 5, vocabulary // 2, vocabulary // 3]], device=model.device)
    mask = torch.ones_like(ids)
    own = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    out = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    states = getattr(out, "last_hidden_state", None)  # None: the model isn't apart from its head
    gap = torch.inf if states is None else (head_logits(model, states).float() - own).abs().max()
    if gap > TOLERANCES[model.dtype] * own.abs().max():
        raise UserError(
            "model must give as its logits what its output embeddings make of its last states, "
            f"perhaps scaled; got model_type={model.config.model_type}, which does something else "
            "to them. Take another model, such as Llama or Qwen."
        )
