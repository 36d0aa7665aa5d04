"""conf/experiment/equal-budget.yaml: as many questions and samples for each algorithm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.config.identity import decisive, prerequisites, training_set
from reasonrl.config.schema import TrainConfig
from tests.unit.config.test_config import CONF, train


def lineage(config: TrainConfig) -> Iterator[TrainConfig]:
    for first in prerequisites(config).values():
        yield from lineage(first)
    yield config


def samples(config: TrainConfig) -> int:
    """Completions that a run samples to learn from, or for others to."""
    algorithm, questions = config.algorithm, training_set(config).train_size or 0
    if isinstance(algorithm, EIConfig):
        return sum(algorithm.samples_in_round(i + 1) for i in range(algorithm.rounds)) * questions
    if isinstance(algorithm, PPOConfig):
        return algorithm.iterations * algorithm.rollouts_per_iteration
    if isinstance(algorithm, SampleConfig):
        return algorithm.num_samples_per_prompt * questions
    assert algorithm.name in ("sft", "rcrl")  # which sample nothing themselves
    return 0


@pytest.mark.parametrize(
    "algorithm", ["ei", "rft", "rest_em", "rcrl", "ppo", "grpo", "maxrl", "dapo"]
)
@pytest.mark.parametrize("model", ["tiny", "7b"])
def test_questions_samples_and_evaluation_are_the_same(algorithm: str, model: str) -> None:
    asked = (f"algorithm={algorithm}", f"model={model}")
    config = train("experiment=equal-budget", *asked)
    assert {training_set(one).train_size for one in lineage(config)} == {1000}
    assert sum(map(samples, lineage(config))) == 16_000
    assert config.evaluation == train(f"model={model}").evaluation
    assert config.init == train("budget=equal", f"model={model}").init


def test_vineppos_samples_are_mostly_continuations_of_steps() -> None:
    config = train("experiment=equal-budget", "algorithm=vineppo")
    algorithm = config.algorithm
    assert isinstance(algorithm, PPOConfig)
    assert training_set(config).train_size == 1000
    # and 16.4 continuations of each completion, measured with tiny from SFT
    assert (samples(config), algorithm.num_continuations) == (920, 4)
    assert algorithm.batch_size == algorithm.rollouts_per_iteration == 46


def test_an_option_of_the_budget_belongs_to_an_algorithm() -> None:
    names = {folder.name for folder in (CONF / "by_budget").iterdir()}
    # rest_em has those of ei, and most variants of PPO those of all policy gradients
    assert names == {"ei", "rft", "rcrl", "policy_gradient", "dapo", "vineppo"}
    for name in names:
        shared = CONF / name / "default.yaml"
        file = shared if shared.exists() else CONF / "algorithm" / f"{name}.yaml"
        text = file.read_text()
        assert f"  - optional /by_budget/{name}@_here_: ${{budget}}\n" in text


def test_without_a_budget_nothing_changes() -> None:
    assert decisive(train()) == decisive(train("budget=none"))
    assert train("algorithm=rft").algorithm.num_samples_per_prompt == [8]  # type: ignore[attr-defined]
    equal = train("algorithm=rft", "budget=equal").algorithm
    assert equal.num_samples_per_prompt == [16]  # type: ignore[attr-defined]
