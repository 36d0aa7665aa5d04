"""A model's head by itself against the model's own logits, for heads that do more than multiply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from reasonrl.learning.packed import PACKED, PromptGroup, completion_logits, find_layout
from reasonrl.learning.supervised import Reader
from reasonrl.policy.head import check_head, head_logits
from reasonrl.reward_models.network import Labelled, build
from reasonrl.util.errors import UserError

PROMPT, COMPLETION = (5, 6, 7, 8), (9, 10, 11, 12)
HEADS = [("llama", {}), ("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.25})]
heads = pytest.mark.parametrize(("kind", "settings"), HEADS, ids=lambda x: x if x else "")


def random_model(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=70,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **settings,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def own_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """Of the completion's tokens, from the model's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + COMPLETION])).logits[0]  # type: ignore[operator]
    every = logits[len(PROMPT) - 1 : -1].log_softmax(dim=-1)
    return every.gather(1, torch.tensor(COMPLETION)[:, None])[:, 0]


@heads
def test_a_reward_model_reads_the_log_probabilities_that_its_trunk_gives(
    kind: str, settings: dict[str, Any]
) -> None:
    model = random_model(kind, settings)
    network = build(model, "all", likelihood=True, lora_rank=1, seed=0)
    assert network.scale is not None
    network.scale.factor.data.fill_(1.0)
    with torch.no_grad():
        (sums,) = network([Labelled(PROMPT, COMPLETION, (None, None, None, 1.0))], torch.float32)
    own = own_logprobs(model)
    assert own.std() > 0.1  # else the check is idle
    torch.testing.assert_close(sums, own.cumsum(dim=0), atol=1e-4, rtol=0)


@heads
def test_packed_completions_and_shards_have_the_model_s_logits(
    kind: str, settings: dict[str, Any]
) -> None:
    model = random_model(kind, settings)
    assert find_layout(model) is PACKED
    own = own_logprobs(model)
    with torch.no_grad():
        packed = completion_logits(model, [PromptGroup(PROMPT, (COMPLETION,))], PACKED)
        states = model.base_model(torch.tensor([PROMPT + COMPLETION])).last_hidden_state[0]
        in_shards = Reader(model)._logprobs(states[3:-1], torch.tensor(COMPLETION))
    every = packed.log_softmax(dim=-1).gather(1, torch.tensor(COMPLETION)[:, None])[:, 0]
    torch.testing.assert_close(every, own, atol=1e-4, rtol=0)
    torch.testing.assert_close(in_shards, own, atol=1e-4, rtol=0)


def test_a_head_that_does_something_else_to_its_logits_is_refused() -> None:
    model = random_model("llama", {})
    model.register_forward_hook(lambda *args: setattr(args[-1], "logits", 2 * args[-1].logits))
    with pytest.raises(UserError, match="got model_type=llama, which does something else to them"):
        check_head(model)


def test_a_head_without_a_scale_is_left_as_it_is() -> None:
    model = random_model("llama", {})
    states = torch.randn(3, 16)
    assert torch.equal(head_logits(model, states), model.get_output_embeddings()(states))
