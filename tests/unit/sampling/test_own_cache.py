"""What a model with its own cache reads, in which parts, and what its rows hold."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasonrl.sampling.base import SamplingParams
from reasonrl.sampling.own_cache import by_own_cache
from reasonrl.sampling.transformers import TransformersEngine
from reasonrl.types import Completion, Prompt
from tests.helpers.families import random_model

# Nine tokens that both begin with, then three and six.
PROMPTS = [
    Prompt("short", (*range(20, 29), 40, 41, 42)),
    Prompt("long", (*range(20, 29), 50, 51, 52, 53, 54, 55)),
]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefill_tokens: int = 1000,
    batch_size: int = 100,
) -> tuple[list[Completion], list[tuple[int, ...]]]:
    """Three completions of each prompt, and the shapes of what the model read for them."""
    shapes: list[tuple[int, ...]] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: shapes.append(tuple(args[0].shape))
    )
    decoding = partial(by_own_cache, prefill_tokens=prefill_tokens)
    engine = TransformersEngine(model, tokenizer, batch_size=batch_size, decoding=decoding)
    completions = engine.sample(PROMPTS, SamplingParams(3, 1.0, 6), seed=0)
    handle.remove()
    return completions, shapes


@pytest.fixture(params=["Gemma 3", "Qwen3.5"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = random_model(request.param)
    model.generation_config.suppress_tokens = [0]  # so that all completions have six tokens
    return model


def test_what_prompts_have_in_common_is_read_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    completions, shapes = sample(model, tokenizer)
    assert {len(c.token_ids) for c in completions} == {6}
    # Nine tokens for both; then of both as many as the short one has; then a token for each of six
    # rows, whose three last are of the long prompt: three of its rest before five of their six. The
    # short one's rows are dropped when they are done.
    assert shapes == [(1, 9), (2, 3), *[(6, 1)] * 5, *[(3, 1)] * 3]


def test_a_pass_reads_no_more_tokens_than_it_may(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    completions, shapes = sample(model, tokenizer, prefill_tokens=4)
    assert shapes[:5] == [(1, 4), (1, 4), (1, 1), (2, 2), (2, 1)]
    assert [c.token_ids for c in completions] == [c.token_ids for c in sample(model, tokenizer)[0]]


def test_rows_that_hold_their_prompts_are_fewer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Of ten rows of 6 tokens there is room for two of 15 + 6: less than three samples of a prompt.
    completions, shapes = sample(model, tokenizer, batch_size=10)
    assert max(rows for rows, _ in shapes) == 2
    assert [c.token_ids for c in completions] == [c.token_ids for c in sample(model, tokenizer)[0]]


def test_the_model_is_left_as_it_was(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model.train()
    sample(model, tokenizer)
    assert all(module.training for module in model.modules())
    assert model(torch.tensor([[3, 4]])).logits.requires_grad  # type: ignore[operator]
