"""Small models of another's architecture, to try out what can't be tried on the model itself."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 256  # the most tokens that a twin knows


def small_twin(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a config's architecture with two narrow layers, few tokens and random weights."""
    config = copy.deepcopy(config)
    heads = config.num_attention_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_hidden_layers = config.num_attention_heads = config.num_key_value_heads = 2
    config.hidden_size = config.intermediate_size = 2 * config.head_dim
    config.initializer_range = 0.2
    config.vocab_size = min(config.vocab_size, VOCABULARY)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None  # perhaps none of these
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[-2:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return twin.eval()


def try_twin(config: PreTrainedConfig) -> PreTrainedModel | None:
    """``small_twin``, or None if there can be none: not every config can be made small."""
    try:
        twin = small_twin(config)
        with torch.inference_mode():
            twin(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception:  # configs check themselves, and models fail, in ways of their own
        return None
    return twin
