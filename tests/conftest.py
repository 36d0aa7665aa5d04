"""Fixtures: the repository's tiny tokenizer under random weights, composed configs, and a sampler
that follows a script.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.policy.policy import Policy, load_tokenizer, save_policy
from tests.helpers.configs import TINY, small_config
from tests.helpers.scripted import Script, ScriptedSampler


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],  # noqa: ARG001 (the hook's)
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything that a test needs is there: a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(TINY))


@pytest.fixture
def make_model() -> Callable[..., LlamaForCausalLM]:
    """Random weights of a seed in the vocabulary of models/tiny; keywords go to the config."""

    def make(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        sizes = {
            "vocab_size": 268,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **settings})).eval()

    return make


@pytest.fixture
def random_policy(
    tmp_path: Path,
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """The folder of a policy with random weights."""
    folder = tmp_path / "random-policy"
    save_policy(Policy(make_model(), tokenizer), folder)
    return str(folder)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., TrainConfig]:
    return partial(small_config, tmp_path / "outputs")


@pytest.fixture
def scripted(tokenizer: PreTrainedTokenizerBase) -> Callable[[Script], ScriptedSampler]:
    return lambda script: ScriptedSampler(tokenizer, script)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures saved in a test."""
    from matplotlib.figure import Figure  # takes a moment that few tests need

    saved: list[Any] = []
    save = Figure.savefig

    def record(figure: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved
