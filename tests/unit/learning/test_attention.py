"""Attention by parts against attention under the mask of packed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaForCausalLM

from reasonrl.learning import attention as module
from reasonrl.learning.attention import Parts, attention
from reasonrl.learning.packed import PACKED, PromptGroup, completion_logits, pack
from reasonrl.learning.recompute import recompute_layers

CPU = torch.device("cpu")
# Rows of 3 + 2 + 1, 1 + 0 + 4 and 4 + 0 tokens: completions are read without their last ones.
BATCH = [
    PromptGroup((5, 6, 7), ((8, 9, 10), (11, 12))),
    PromptGroup((5,), ((8,), (9, 10, 11, 12, 13))),
    PromptGroup((5, 6, 7, 8), ((9,),)),
]


class Attention(nn.Module):
    """What the function reads of a model's attention."""

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = num_key_value_groups, True


def test_the_parts_of_rows() -> None:
    parts = Parts.of([(2, [2, 1]), (1, [0, 3])])
    # flattened: 0 1 are the first prompt, 2 3 and 4 its completions; 5 is the second prompt, and
    # 6 7 8 its second completion; 9 is padding
    assert parts.num_prompt == 2
    assert parts.own.tolist() == [[2, 3, 0], [4, 0, 0], [0, 0, 0], [6, 7, 8]]
    assert parts.seen[:, :2].tolist() == [[0, 1], [0, 1], [5, 6], [5, 6]]
    assert parts.seen[:, 2:].equal(parts.own)
    causal = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert parts.attends[:, 0].int().tolist() == [
        [[*prompt, *own] for own in causal] for prompt in ([1, 1], [1, 1], [1, 0], [1, 0])
    ]
    # of 2 · 2 tokens of prompts, the fourth of which is none, and 4 · 3 tokens of completions
    assert parts.back.tolist() == [[0, 1, 4, 5, 7], [2, 13, 14, 15, 0]]


@pytest.mark.parametrize("batch", [BATCH, BATCH[:1], BATCH[1:2], BATCH[2:]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_parts_give_what_the_mask_gives(
    batch: list[PromptGroup], heads: int, kv_heads: int
) -> None:
    """At real tokens, of several prompts and ragged completions; gradients too."""
    inputs = pack(batch, CPU).inputs
    rows, length = inputs["input_ids"].shape
    real = torch.arange(length) < torch.tensor([len(group) for group in batch])[:, None]
    torch.manual_seed(0)
    shapes = [(rows, number, length, 8) for number in (heads, kv_heads, kv_heads)]
    states = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn(rows, length, heads, 8, dtype=torch.float64)[real]

    def found(**how: Any) -> list[Tensor]:
        out, _ = attention(
            Attention(heads // kv_heads), *states, inputs["attention_mask"], scaling=0.7, **how
        )
        return [out[real], *torch.autograd.grad((weights * out[real]).sum(), states)]

    for by_parts, by_mask in zip(found(parts=inputs["parts"]), found(), strict=True):
        torch.testing.assert_close(by_parts, by_mask, rtol=1e-12, atol=1e-12)


def test_no_pair_between_completions_is_computed(
    make_model: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, ...]] = []
    plain = module.sdpa_attention_forward

    def counted(of: nn.Module, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        computed.append((len(query), query.shape[2], key.shape[2]))
        return plain(of, query, key, *args, **options)

    monkeypatch.setattr(module, "sdpa_attention_forward", counted)
    with torch.no_grad():
        completion_logits(make_model(num_hidden_layers=1), BATCH, PACKED)
    # the prompts of three rows, and five completions of at most four tokens
    assert computed == [(3, 4, 4), (5, 4, 4 + 4)]


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_model_has_the_gradients_of_the_mask(
    make_model: Callable[..., LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    recomputes: bool,
) -> None:
    """Where layers are computed again in the backward pass, too."""

    def gradients() -> list[Tensor]:
        model = make_model(initializer_range=0.2).eval()
        if recomputes:
            recompute_layers(model)
        completion_logits(model, BATCH, PACKED).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    by_parts = gradients()
    monkeypatch.setitem(
        AttentionInterface._global_mapping, "sdpa", module.sdpa_attention_forward
    )  # which reads the mask alone
    by_mask = gradients()
    assert len(by_parts) == len(by_mask) > 0
    for one, other in zip(by_parts, by_mask, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
