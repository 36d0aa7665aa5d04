"""Engines: opened on a folder or on a policy, refreshed as it learns, whole or not at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.sampler import SAMPLERS
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.planner import plan
from reasonrl.policy.policy import Policy
from reasonrl.sampling import ENGINES, Engine, SamplingParams, TransformersEngine, open_engine
from reasonrl.sampling.base import DECLARATIONS
from reasonrl.types import Prompt
from reasonrl.util.errors import UserError

CPU = torch.device("cpu")


def sampled(engine: Engine) -> list[Any]:
    params = SamplingParams(4, 1.0, 8)
    return engine.sample([Prompt("p", (5, 6, 7))], params, seed=3)


def test_every_option_has_its_engine() -> None:
    assert set(ENGINES) == set(SAMPLERS)


@pytest.mark.parametrize("left_out", DECLARATIONS)
def test_an_engine_declares_all_that_is_asked_of_it(left_out: str) -> None:
    members = {n: vars(TransformersEngine)[n] for n in DECLARATIONS if n != left_out}
    with pytest.raises(TypeError, match=f"engine Half must declare {left_out}$"):
        type("Half", (Engine,), members)


def test_a_folder_and_its_policy_in_memory_are_sampled_alike(
    configure: Callable[..., TrainConfig],
    random_policy: str,
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    config = configure("sampler.batch_size=3")
    folder = open_engine(random_policy, config, CPU)
    assert folder.batch_size == 3
    assert open_engine(Policy(make_model(), tokenizer), configure(), CPU).batch_size == 1024
    assert folder.model.dtype == torch.float32
    alive = open_engine(Policy(make_model(), tokenizer), config, CPU)
    assert sampled(folder) == sampled(alive)


def test_an_engine_whose_package_is_missing_is_an_error_in_the_plan(
    configure: Callable[..., TrainConfig], random_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("sampler=vllm", f"model.path={random_policy}")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for use in (plan, lambda config: open_engine(random_policy, config, CPU)):
        with pytest.raises(UserError, match=r"must find the package vllm, .*docs/vllm"):
            use(config)


def test_a_refreshed_engine_is_one_of_the_new_weights(
    make_model: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> None:
    old, new = make_model(0, initializer_range=0.3), make_model(1, initializer_range=0.3)
    engine = TransformersEngine(old, tokenizer)
    first = sampled(engine)
    engine.release()
    assert old not in vars(engine).values()
    engine.refresh(new)
    assert sampled(engine) == sampled(TransformersEngine(new, tokenizer)) != first
