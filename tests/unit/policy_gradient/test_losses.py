"""Ratios, clipping and aggregation by hand, against finite differences, and against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from reasonrl.config.algorithm.ppo import AGGREGATIONS as DECLARED_AGGREGATIONS
from reasonrl.config.algorithm.ppo import RATIOS as DECLARED_RATIOS
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.learning.functional import (
    detached_policy_loss,
    group_means,
    policy_loss,
    sequence_means,
    token_logprobs,
)
from reasonrl.policy_gradient.actor_critic import TokenOutputs
from reasonrl.policy_gradient.losses import AGGREGATIONS, RATIOS, Minibatch, token_losses

LENGTHS = (2, 3)
ADVANTAGES = torch.tensor([1.0, 1.0, -0.5, -0.5, -0.5], dtype=torch.float64)
OLD = torch.tensor([-1.0, -2.0, -0.5, -1.5, -3.0], dtype=torch.float64)


def configured(configure: Callable[..., TrainConfig], name: str, **changed: Any) -> PPOConfig:
    algorithm: Any = configure(f"algorithm={name}").algorithm
    return replace(algorithm, kl_coef=0.0, **changed)


def gradient(config: PPOConfig, logprobs: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """That of an optimizer step's loss, by the log-probabilities of its tokens."""
    logprobs = logprobs.clone().requires_grad_()
    new = TokenOutputs(logprobs, torch.empty(0), torch.zeros_like(logprobs))
    old = {"old_logprobs": OLD, "advantages": ADVANTAGES, "ref_logprobs": OLD}
    losses, _ = token_losses(new, old, lengths, config, 0.0)
    of_all = Minibatch(sum(lengths), len(lengths), max_new_tokens=10)
    weights = AGGREGATIONS[config.aggregation](of_all, lengths)
    ((weights * losses).sum() / of_all.num_tokens).backward()
    assert logprobs.grad is not None
    return logprobs.grad


def test_every_option_is_there() -> None:
    assert set(RATIOS) == set(DECLARED_RATIOS)
    assert set(AGGREGATIONS) == set(DECLARED_AGGREGATIONS)


def test_bounds_of_their_own() -> None:
    log_ratio = torch.tensor([1.5, 1.25, 0.6, 0.6, 1.5]).log()
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    # clipped above at 1.28, below at 0.8, each where it would pay
    expected = [-1.28, -1.25, -0.6, 0.8, 1.5]
    assert policy_loss(log_ratio, advantages, 0.2, 0.28).tolist() == pytest.approx(expected)


def test_a_detached_ratio_keeps_every_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_ratio = torch.tensor([3.0, 0.5]).log()
    loss = detached_policy_loss(logprobs, log_ratio, torch.tensor([1.0, -2.0]), 0.2, 0.5)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.5, 1.6])  # ρ is cut to 1.5 and 0.8


def test_sequence_means_by_hand() -> None:
    found = sequence_means(torch.tensor([1.0, 3.0, 0.0, 3.0, 6.0]), LENGTHS)
    assert found.tolist() == [2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("sequence", [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]),
        ("constant", [0.05] * 5),  # two completions of at most ten tokens
    ],
)
def test_weights_by_hand(aggregation: str, expected: list[float]) -> None:
    of_all = Minibatch(5, 2, max_new_tokens=10)
    weights = AGGREGATIONS[aggregation](of_all, LENGTHS) * torch.ones(5) / of_all.num_tokens
    assert weights.tolist() == pytest.approx(expected)
    # a part of the minibatch has the same weights
    part = AGGREGATIONS[aggregation](of_all, LENGTHS[:1]) * torch.ones(2) / of_all.num_tokens
    assert part.tolist() == pytest.approx(expected[:2])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_against_finite_differences(
    configure: Callable[..., TrainConfig], ratio: str, aggregation: str
) -> None:
    config = configured(configure, "grpo", ratio=ratio, aggregation=aggregation)
    of_all = Minibatch(5, 2, max_new_tokens=10)

    def loss(logprobs: Tensor) -> Tensor:
        new = TokenOutputs(logprobs, torch.empty(0), torch.zeros_like(logprobs))
        old = {"old_logprobs": OLD, "advantages": ADVANTAGES, "ref_logprobs": OLD}
        losses, _ = token_losses(new, old, LENGTHS, config, 0.0)
        return (AGGREGATIONS[aggregation](of_all, LENGTHS) * losses).sum()

    moved = OLD + torch.tensor([0.1, -0.4, 0.05, 0.5, -0.1], dtype=torch.float64)
    assert gradcheck(loss, (moved.requires_grad_(),))


def test_on_policy_ratios_and_clipping_make_no_difference(
    configure: Callable[..., TrainConfig],
) -> None:
    """GRPO, GSPO and CISPO have one gradient where nothing was learnt yet, by sequence."""
    how = {"aggregation": "sequence"}
    grpo = gradient(configured(configure, "grpo", **how), OLD)
    gspo = gradient(configured(configure, "grpo", **how, ratio="sequence"), OLD)
    cispo = gradient(configured(configure, "grpo", **how, clip_detached=True), OLD)
    assert torch.allclose(gspo, grpo, rtol=0, atol=1e-15)
    assert torch.allclose(cispo, grpo, rtol=0, atol=1e-15)
    by_token = gradient(configured(configure, "grpo", aggregation="token"), OLD)
    assert not torch.allclose(by_token, grpo)
    # and where it was, they differ
    moved = OLD + torch.tensor([0.5, 0.1, -0.4, 0.0, 0.1], dtype=torch.float64)
    others = [
        gradient(configured(configure, "grpo", **how, **change), moved)
        for change in ({}, {"ratio": "sequence"}, {"clip_detached": True})
    ]
    assert not torch.allclose(others[0], others[1])
    assert not torch.allclose(others[0], others[2])


def test_maxrl_is_the_likelihood_of_success_and_a_baseline() -> None:
    """MaxRL's gradient is per-problem cross-entropy's on the same samples, less one term.

    One question, whose answers are single tokens: the first two are right.
    """
    torch.manual_seed(0)
    logits = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    samples = torch.tensor([0, 3, 1, 0, 4, 2])
    scores = (samples < 2).double()
    groups = torch.zeros(6, dtype=torch.long)
    logprobs = token_logprobs(logits.expand(6, -1), samples, 1.0)
    means = group_means(scores, groups)

    def gradient_of(weights: Tensor) -> Tensor:
        (found,) = torch.autograd.grad((weights * logprobs).mean(), logits, retain_graph=True)
        return found

    maxrl = gradient_of((scores - means) / means)
    # cross-entropy of the question's right samples, each with an equal share of its weight
    right = scores / scores.sum()
    (per_problem,) = torch.autograd.grad((right * logprobs).sum(), logits, retain_graph=True)
    baseline = gradient_of(torch.ones(6, dtype=torch.float64))
    assert torch.allclose(maxrl, per_problem - baseline, rtol=0, atol=1e-12)
    assert baseline.abs().max() > 0.01
