"""Whole runs of models whose prompts can't be shared: windows, linear attention, both kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.pipeline.results import result_of
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.result import read_result
from reasonrl.util.progress import Progress
from tests.helpers.configs import small_config
from tests.helpers.families import random_model

pytestmark = pytest.mark.slow
SIZES = ["dataset.test_size=4", "dataset.validation_size=6", "evaluation.num_samples_per_prompt=2"]
EI = ["algorithm.rounds=1", "algorithm.num_samples_per_prompt=[2]", "algorithm.epochs=1"]
PPO = [
    "algorithm=ppo",
    "init=pretrained",
    "algorithm.iterations=2",
    "algorithm.rollouts_per_iteration=8",
    "algorithm.num_samples_per_prompt=4",
    "algorithm.batch_size=8",
    "algorithm.epochs=2",
    "algorithm.value_layers=1",
    "algorithm.truncation_penalty=1",  # something to learn from: no answer is right
]


@pytest.fixture(scope="module", params=["Gemma 3", "Qwen3-Next", "Falcon-H1"])
def configure(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., TrainConfig]:
    folder = tmp_path_factory.mktemp("families")
    save_policy(Policy(random_model(request.param), tokenizer), folder / "model")
    return partial(small_config, folder / "outputs", f"model.path={folder / 'model'}", *SIZES)


def finished(planned: Plan) -> list[dict[str, float]]:
    """A run's metrics, once it is done and its policy is seen to be another than the first."""
    assert planned.reading.startswith("each completion sampled holds its own copy of its prompt")
    run = ensure_done(planned, Progress())
    result = result_of(planned, Progress())
    assert len(result.after.problem_ids) == 4
    learnt, base = (
        AutoModelForCausalLM.from_pretrained(Path(folder)).state_dict()
        for folder in (read_result(run).path, planned.base)
    )
    assert learnt.keys() == base.keys()
    assert any(not torch.equal(learnt[name], base[name]) for name in learnt)
    return read_metrics(run.metrics)


def test_expert_iteration(configure: Callable[..., TrainConfig]) -> None:
    sft = ["init.sft.batch_size=8", "init.sft.epochs=1"]
    finished(plan(configure("algorithm=ei", *EI, *sft)))


def test_ppo(configure: Callable[..., TrainConfig]) -> None:
    records = finished(plan(configure(*PPO)))
    gaps = [m["pg/sampler_logprob_gap"] for m in records if "pg/sampler_logprob_gap" in m]
    assert len(gaps) == 2
    assert max(gaps) < 1e-4
    first = next(m for m in records if "pg/ratio_min" in m)
    assert first["pg/ratio_min"] == pytest.approx(1, abs=1e-4)
    assert first["pg/ratio_max"] == pytest.approx(1, abs=1e-4)
