"""Small random models of the families that people take: of each its own layers, in few numbers.

Windows are shorter than the sequences of tests, and every kind of layer is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 268,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FULL, WINDOW, LINEAR = "full_attention", "sliding_attention", "linear_attention"
WINDOWS = {"sliding_window": 5, "layer_types": [WINDOW, FULL]}
HYBRID = {"layer_types": [LINEAR, FULL]}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}


@dataclass(frozen=True)
class Family:
    """A family as docs/models.md has it."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    sampler: str = "own cache"
    learner: str = "padded rows"
    value_layers: str = "any"  # or 0, where its top layers can't be copied for the value function


def plain(model_type: str, **settings: Any) -> Family:
    """A family whose layers all have plain causal attention."""
    return Family(model_type, settings, sampler="segments", learner="packed rows")


FAMILIES = {
    "Llama 2, 3": plain("llama"),
    "Qwen2.5": plain("qwen2"),
    "Qwen3": plain("qwen3"),
    "Qwen3 MoE": plain("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "OLMo 2": plain("olmo2"),
    "Phi-3, Phi-4": plain("phi3"),
    "Granite 3": plain("granite", logits_scaling=4.0, attention_multiplier=0.5),
    "SmolLM3": plain("smollm3", no_rope_layers=[1, 0]),
    "OLMo 3": Family("olmo3", WINDOWS),
    "Gemma 2": Family("gemma2", WINDOWS | {"final_logit_softcapping": 5.0}),
    "Gemma 3": Family("gemma3_text", WINDOWS),
    "Gemma 4": Family(
        "gemma4_text",
        WINDOWS
        | {
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 268,
            "final_logit_softcapping": 5.0,
        },
        value_layers="0",
    ),
    "Mistral with a window": Family("mistral", {"sliding_window": 5}),
    "Ministral": Family("ministral", WINDOWS),
    "gpt-oss": Family("gpt_oss", WINDOWS | EXPERTS | ROPE),
    "Qwen3-Next": Family(
        "qwen3_next",
        HYBRID
        | DELTA
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "Qwen3.5": Family("qwen3_5_text", HYBRID | DELTA),
    "OLMo Hybrid": Family("olmo_hybrid", HYBRID | DELTA),
    "Nemotron-H": Family(
        "nemotron_h",
        {
            "initializer_range": 0.1,  # with larger weights its scan and its steps round apart
            "layers_block_type": [LINEAR, "mlp", FULL, "moe"],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "Kimi Linear": Family(
        "kimi_linear",
        HYBRID
        | EXPERTS
        | {
            "num_key_value_heads": 2,
            "moe_intermediate_size": 16,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "linear_head_dim": 16,
            "linear_num_heads": 2,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "Falcon-H1": Family(
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 2,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
            "key_multiplier": 0.5,
        },
    ),
    "LFM2": Family("lfm2", {"layer_types": ["conv", FULL]}),
}


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family with random float32 weights."""
    family = FAMILIES[name]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family.model_type](**SIZES | family.settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()
