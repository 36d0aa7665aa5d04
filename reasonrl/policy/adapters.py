"""What is added to a policy in place: LoRA adapters, and tokens that no text encodes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from reasonrl.policy.policy import Policy

# Layers whose kernels read these weights by themselves, past any adapter: peft refuses them there.
MAMBA = {"falcon_h1", "nemotron_h", "mamba", "mamba2", "falcon_mamba"}
READ_BY_KERNELS = ["out_proj", "conv1d"]


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> Any:
    """Puts LoRA adapters on the model's linear layers, in place, and freezes all the rest.

    The adapters change nothing at first. Their scale α / r is 2; ``seed`` decides their random
    half. Returns peft's model around ``model``; its ``merge_and_unload`` makes the adapters part of
    the weights.
    """
    from peft import LoraConfig, TaskType, get_peft_model  # takes a second that few runs need

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=READ_BY_KERNELS if model.config.model_type in MAMBA else None,
    )
    return get_peft_model(model, config)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within it, the model is read as if it had no LoRA adapters.

    peft's own ``disable_adapter`` also changes what trains for as long, which a model in shards
    must not see.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def add_tokens(policy: Policy, count: int, seed: int) -> list[int]:
    """Gives the policy ``count`` new tokens, in place, and returns their ids.

    The tokenizer doesn't know them: no text encodes to them. They are never sampled
    (``suppress_tokens`` of the policy's generation config). Their embeddings are drawn apart from
    each other, with the mean and the standard deviation, by dimension, of the old embeddings.
    """
    model: Any = policy.model
    first = len(model.get_input_embeddings().weight)
    torch.manual_seed(seed)  # it also decides the output's rows, where these aren't the embeddings
    rows = model.resize_token_embeddings(first + count, mean_resizing=False).weight
    with torch.no_grad():
        known = rows[:first]
        noise = torch.randn(count, rows.shape[1])
        rows[first:] = known.mean(dim=0) + known.std(dim=0) * noise.to(rows)
    ids = list(range(first, first + count))
    model.generation_config.suppress_tokens = ids
    return ids
