"""Baselines and scales against tables by hand, and what one is of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import BASELINES as DECLARED_BASELINES
from reasonrl.config.algorithm.ppo import SCALES as DECLARED_SCALES
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.policy_gradient.advantages import BASELINES, SCALES, Scored, Steps

# Two questions: of the first, of four completions, one scores 1; of the second two of two.
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1])
SCORES = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
MASK = torch.tensor([[True, True], [True, False]] * 3)


@pytest.fixture
def config(configure: Callable[..., TrainConfig]) -> PPOConfig:
    algorithm: Any = configure("algorithm=grpo").algorithm
    return algorithm


def scored(**more: Any) -> Scored:
    """The scores as rewards of the last tokens."""
    rewards = torch.zeros(6, 2, dtype=torch.float64)
    for row, score in enumerate(SCORES):
        rewards[row, int(MASK[row].sum()) - 1] = score
    return Scored(rewards, MASK, torch.zeros(6, 2, dtype=torch.float64), GROUPS, **more)


def advantages(config: PPOConfig, baseline: str, scale: str, **more: Any) -> Tensor:
    ones = scored(**more)
    found, _ = BASELINES[baseline](ones, config)
    return SCALES[scale](found, ones, config)


def of_completions(
    config: PPOConfig, baseline: str, scale: str = "none", **more: Any
) -> list[float]:
    """The advantage of each completion's first token; its others have the same."""
    found = advantages(config, baseline, scale, **more)
    assert (found[0::2, 0] == found[0::2, 1]).all()
    assert (found[1::2, 1] == 0).all() or scale == "batch_std"  # padding
    return found[:, 0].tolist()


def test_every_option_is_there() -> None:
    assert set(BASELINES) == set(DECLARED_BASELINES)
    assert set(SCALES) == set(DECLARED_SCALES)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [1, 0, 0, 0, 1, 1]),
        ("group_mean", [0.75, -0.25, -0.25, -0.25, 0, 0]),
        ("leave_one_out", [1, -1 / 3, -1 / 3, -1 / 3, 0, 0]),
    ],
)
def test_baselines_by_hand(config: PPOConfig, baseline: str, expected: list[float]) -> None:
    assert of_completions(config, baseline) == pytest.approx(expected)


def test_a_greedy_baseline(config: PPOConfig) -> None:
    greedy = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = of_completions(config, "greedy", greedy=greedy)
    assert found == [0, -1, -1, -1, 1, 1]


def test_scales_by_hand(config: PPOConfig) -> None:
    # the first question's deviation by n - 1: √((0.75² + 3 · 0.25²) / 3) = 0.5
    found = of_completions(config, "group_mean", "group_std")
    assert found == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0], abs=1e-5)
    # its mean: 1/4
    found = of_completions(config, "group_mean", "group_mean")
    assert found == pytest.approx([3, -1, -1, -1, 0, 0])
    # nine tokens: 0.75 twice, -0.25 four times, 0 three times; mean 1/18, variance 0.13889
    found = of_completions(config, "group_mean", "batch_std")
    spread = ((2 * 0.75**2 + 4 * 0.25**2) / 9 - (1 / 18) ** 2) ** 0.5
    assert found == pytest.approx(
        [(x - 1 / 18) / spread for x in (0.75, -0.25, -0.25, -0.25, 0, 0)], abs=1e-3
    )


def test_a_question_that_nobody_solves_has_no_advantage_by_its_mean(config: PPOConfig) -> None:
    nothing = replace(scored(), rewards=torch.zeros(6, 2, dtype=torch.float64))
    found, _ = BASELINES["group_mean"](nothing, config)
    assert (SCALES["group_mean"](found, nothing, config) == 0).all()


@pytest.mark.parametrize("baseline", ["none", "greedy", "group_mean", "leave_one_out", "critic"])
def test_a_question_whose_scores_are_the_same_has_no_advantage_by_their_spread(
    configure: Callable[..., TrainConfig], baseline: str
) -> None:
    """Whatever is taken off them: the spread of 0 would make it a million times as large."""
    config: Any = configure("algorithm=ppo").algorithm
    greedy = torch.zeros(6, dtype=torch.float64)
    found = advantages(config, baseline, "group_std", greedy=greedy)
    assert (found[4:] == 0).all()
    assert found[0, 0] > 0


@pytest.mark.parametrize("size", [3, 8, 16])
@pytest.mark.parametrize("score", [0.7, 1 / 3, 0.1, -2.3])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "group_std", "group_mean"])
def test_equal_scores_have_no_advantage_at_all_whatever_they_are(
    config: PPOConfig, size: int, score: float, baseline: str, scale: str
) -> None:
    """Each is paid in three parts at other tokens; a rounded mean isn't quite what is averaged."""
    rewards = torch.zeros(size, 9)
    for row in range(size):
        for place, part in enumerate((0.2, 0.5, 0.3)):
            rewards[row, (place + row) % 3 + 3 * place] = score * part
    mask, values = torch.ones(size, 9, dtype=torch.bool), torch.zeros(size, 9)
    ones = Scored(rewards, mask, values, torch.zeros(size, dtype=torch.long))
    found, _ = BASELINES[baseline](ones, config)
    assert (SCALES[scale](found, ones, config) == 0).all()


def test_steps_by_hand(config: PPOConfig) -> None:
    steps = [Steps((0, 1), (0.25, 0.75)), *[Steps((0,), (0.5,))] * 5]
    found = advantages(config, "step_continuations", "none", steps=steps)
    # the first: 0.75 - 0.25, then its score 1 - 0.75; the others their score less 0.5
    assert found.tolist() == [[0.5, 0.25], [-0.5, 0], [-0.5, -0.5], [-0.5, 0], [0.5, 0.5], [0.5, 0]]


def test_leaving_one_out_is_the_group_s_mean_times_k_by_k_less_1(
    config: PPOConfig, configure: Callable[..., TrainConfig]
) -> None:
    """RLOO is Dr. GRPO, but for the learning rate and the KL."""
    rloo = torch.tensor(of_completions(config, "leave_one_out"))
    dr_grpo = torch.tensor(of_completions(config, "group_mean"))
    sizes = torch.tensor([4.0, 4, 4, 4, 2, 2])
    assert torch.allclose(rloo, sizes / (sizes - 1) * dr_grpo)
    of_rloo, of_dr_grpo = (vars(configure(f"algorithm={n}").algorithm) for n in ("rloo", "dr_grpo"))
    assert {name for name, value in of_rloo.items() if value != of_dr_grpo[name]} == {
        "name",
        "baseline",
        "kl_coef",
        "kl_penalty",
    }


def test_questions_alike_are_no_one_else_s_advantage(config: PPOConfig) -> None:
    """What DAPO leaves out has no advantage, and the others' are what they were."""
    ones = scored()
    kept = Scored(ones.rewards[:4], MASK[:4], ones.values[:4], GROUPS[:4])
    for scale in ("none", "group_std", "group_mean"):
        with_all = advantages(config, "group_mean", scale)
        alone, _ = BASELINES["group_mean"](kept, config)
        assert torch.equal(SCALES[scale](alone, kept, config), with_all[:4])
        assert (with_all[4:] == 0).all()
