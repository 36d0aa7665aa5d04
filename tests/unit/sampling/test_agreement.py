"""Which architectures are read by segments as by themselves: small random models of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from reasonrl.config.schema import TrainConfig
from reasonrl.learning.packed import PACKED, PADDED, find_layout
from reasonrl.policy.policy import Policy
from reasonrl.policy.twin import small_twin, try_twin
from reasonrl.sampling import open_engine
from reasonrl.sampling.agreement import find_decoding, why_not_by_segments
from reasonrl.sampling.own_cache import by_own_cache
from reasonrl.util.errors import UserError

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 268,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
OWN_ATTENTION = "it raises IndexError: list index out of range"
OTHER_ARGUMENTS = (
    "it raises TypeError: attention() missing 1 required keyword-only argument: 'memory'"
)
READ_RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1}),
    ("gpt2", {}),
    ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("gpt_neox", {}),
    ("mistral", {"sliding_window": None}),
    ("mixtral", {"sliding_window": None} | EXPERTS),
    ("granite", {"logits_scaling": 8.0, "attention_multiplier": 1.5}),
    ("cohere", {"logit_scale": 0.25}),
]
READ_WRONGLY: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", {"sliding_window": 4}, "it raises NotImplementedError: attention with sliding_wi"),
    ("gemma2", {"head_dim": 16}, "it has layers of sliding_attention"),
    ("gpt_oss", {"head_dim": 16} | EXPERTS, "it has layers of sliding_attention"),
    ("gpt_oss", {"head_dim": 16, "layer_types": ["full_attention"] * 2} | EXPERTS,
     "it raises NotImplementedError: attention with s_aux"),
    ("stablelm", {}, OTHER_ARGUMENTS),
    ("nemotron", {}, OTHER_ARGUMENTS),
    ("gptj", {"rotary_dim": 8}, OWN_ATTENTION),
    ("bloom", {}, OWN_ATTENTION),
    ("falcon", {}, OWN_ATTENTION),
    ("mamba", {}, "it has layers of linear_attention"),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "it has layers of conv"),
    ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8},
     "it has layers of hybrid"),
]  # fmt: skip


def random_model(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SIZES | settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize(("kind", "settings"), READ_RIGHT)
def test_what_is_read_right_is_taken(kind: str, settings: dict[str, Any]) -> None:
    assert why_not_by_segments(random_model(kind, settings)) is None


@pytest.mark.parametrize(("kind", "settings", "why"), READ_WRONGLY)
def test_what_is_read_wrongly_is_named(kind: str, settings: dict[str, Any], why: str) -> None:
    found = why_not_by_segments(random_model(kind, settings))
    assert found is not None
    assert found.startswith(why)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_complains_of_nothing_is_found_out_by_its_logits(dtype: torch.dtype) -> None:
    model = random_model("diffllama", {}).to(dtype)  # its layers attend twice
    found = why_not_by_segments(model)
    assert found is not None
    assert found.startswith("its logits are then off by ")


def test_layers_with_a_state_beside_attention_move_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the word of its config, too: nothing complains here either."""
    monkeypatch.setattr("reasonrl.sampling.agreement.other_layers", lambda _: None)
    kind, settings, _ = READ_WRONGLY[-1]
    found = why_not_by_segments(random_model(kind, settings | {"initializer_range": 0.2}))
    assert found is not None
    assert found.startswith("its logits are then off by ")


def test_rounding_is_no_disagreement(make_model: Callable[..., LlamaForCausalLM]) -> None:
    deep = make_model(num_hidden_layers=12, initializer_range=0.2)
    assert why_not_by_segments(deep) is None
    assert why_not_by_segments(deep.bfloat16()) is None


def test_weights_that_are_not_finite_are_no_fault_of_the_architecture(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model = make_model()
    model.lm_head.weight.data[5] = torch.nan
    assert why_not_by_segments(model) is None


def test_the_model_is_left_as_it_was(make_model: Callable[..., LlamaForCausalLM]) -> None:
    model = make_model(attention_dropout=0.5).train()
    model.lm_head.eval()
    before = model.config._attn_implementation
    assert why_not_by_segments(model) is None
    assert model.config._attn_implementation == before
    assert {name for name, m in model.named_modules() if not m.training} == {"lm_head"}


@pytest.mark.parametrize(("kind", "settings", "why"), READ_WRONGLY)
def test_most_of_what_is_read_wrongly_is_read_right_with_its_own_cache(
    kind: str, settings: dict[str, Any], why: str
) -> None:
    if kind == "mamba":  # its cache has another name
        with pytest.raises(
            UserError, match=r"it has layers of linear_attention\. With its own cache"
        ):
            find_decoding(random_model(kind, settings))
        return
    found = find_decoding(random_model(kind, settings))
    assert found.decoding is by_own_cache
    assert str(found.why_not_segments).startswith(why)


def test_a_cache_that_loses_a_row_is_found_out(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., TrainConfig], tokenizer: Any
) -> None:
    """Beside one that can't be copied at all."""
    model = random_model("gemma2", {"head_dim": 16})
    assert find_decoding(model).decoding is by_own_cache
    reorder = DynamicCache.reorder_cache
    monkeypatch.setattr(
        DynamicCache, "reorder_cache", lambda self, rows: reorder(self, rows.flip(0))
    )
    with pytest.raises(UserError, match="With its own cache: its logits are then off by"):
        open_engine(Policy(model, tokenizer), configure(), CPU)


def test_windows_show_however_long_they_are() -> None:
    """They are shortened for the while of the check."""
    model = random_model("mistral", {"sliding_window": 50, "initializer_range": 0.2})
    assert find_layout(model) is PADDED
    assert model.config.sliding_window == 50
    assert find_layout(random_model("mistral", {"sliding_window": None})) is PACKED


def test_a_twin_of_a_config_that_cannot_be_made_small() -> None:
    config: PreTrainedConfig = CONFIG_MAPPING["mamba"]()
    with pytest.raises(AttributeError):
        small_twin(config)
    assert try_twin(config) is None


def test_a_twin_has_a_layer_of_each_kind() -> None:
    config = CONFIG_MAPPING["gemma3_text"](num_hidden_layers=11)  # 6, 5 and 11 layers
    twin = try_twin(config)
    assert twin is not None
    assert twin.config.layer_types == ["full_attention", "sliding_attention"]
    assert len(twin.base_model.layers) == 2


def test_a_twin_is_small_and_leaves_its_config_alone() -> None:
    config = CONFIG_MAPPING["llama"](hidden_size=4096, vocab_size=128256)
    twin = try_twin(config)
    assert twin is not None
    assert sum(p.numel() for p in twin.parameters()) < 2_000_000
    assert (config.hidden_size, config.vocab_size, config.num_hidden_layers) == (4096, 128256, 32)
