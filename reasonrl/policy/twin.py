"""Small models of another's architecture, to try out what can't be tried on the model itself."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 256  # the most tokens that a twin knows
# The most it has of what some configs have: experts, how many of them and of their groups read a
# token, and the tokens that a scan takes at a time.
MOST = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
}


def small_twin(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a config's architecture: narrow, with few layers and tokens and random weights.

    It has a layer of each kind, and two at least.
    """
    config = copy.deepcopy(config)
    heads, kinds = config.num_attention_heads, _kinds(config)
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_hidden_layers = len(kinds)
    config.num_attention_heads = config.num_key_value_heads = 2
    config.hidden_size = config.intermediate_size = 2 * config.head_dim
    config.initializer_range = config.hidden_size**-0.5  # so that states stay about 1
    config.vocab_size = min(config.vocab_size, VOCABULARY)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None  # perhaps none of these
    for name, most in MOST.items():
        if (number := getattr(config, name, None)) is not None:
            setattr(config, name, min(number, most))
    if len(getattr(config, "layer_types", None) or ()) > len(kinds):
        config.layer_types = kinds
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return twin.eval()


def _kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each of the twin's layers: the last layer of each kind, and at least two."""
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * 2)
    last = sorted({kind: number for number, kind in enumerate(kinds)}.values())
    return [kinds[number] for number in last] if len(last) > 1 else kinds[-2:]


def try_twin(config: PreTrainedConfig) -> PreTrainedModel | None:
    """``small_twin``, or None if there can be none: not every config can be made small."""
    try:
        twin = small_twin(config)
        with torch.inference_mode():
            twin(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception:  # configs check themselves, and models fail, in ways of their own
        return None
    return twin
