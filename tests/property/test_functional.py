"""What holds for any batch of rewards, values and log-probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reasonrl.learning.functional import generalized_advantages, kl_k1, kl_k3, policy_loss, whiten

deterministic = settings(derandomize=True, deadline=None, max_examples=100)

NUMBERS = st.floats(-10, 10, allow_subnormal=False)
# Rows of (reward, value) of a token each; some may be empty, not all.
EPISODES = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6), min_size=1, max_size=4)
EPISODES = EPISODES.filter(any)
# Eighths: sums of them are exact, so that only what is tested can round.
EIGHTHS = st.lists(st.integers(-100, 100), min_size=2, max_size=20).filter(lambda x: len({*x}) > 1)


def batch(rows: list[list[float]], padding: float) -> tuple[Tensor, Tensor]:
    """(B, T + 1) values and their mask."""
    width = max(map(len, rows)) + 1
    filled = [row + [padding] * (width - len(row)) for row in rows]
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor(filled, dtype=torch.float64), mask


@deterministic
@given(EPISODES, st.floats(0, 1), st.sampled_from([0.0, 1e6, math.nan]))
def test_with_lambda_1_advantages_are_discounted_returns_less_values(
    episodes: list[list[tuple[float, float]]], gamma: float, padding: float
) -> None:
    rewards, mask = batch([[reward for reward, _ in row] for row in episodes], padding)
    values, _ = batch([[value for _, value in row] for row in episodes], padding)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, 1.0)
    for i, row in enumerate(episodes):
        for t in range(mask.shape[1]):
            to_come = sum(gamma**k * rewards[i, t + k].item() for k in range(len(row) - t))
            less = values[i, t].item() if t < len(row) else 0.0
            assert returns[i, t].item() == pytest.approx(to_come, abs=1e-9)
            assert advantages[i, t].item() == pytest.approx(to_come - less, abs=1e-9)


@deterministic
@given(st.lists(st.tuples(st.floats(-50, 0), NUMBERS), min_size=1), st.floats(0.01, 0.99))
def test_equal_policies_have_ratio_1_and_nothing_is_clipped(
    tokens: list[tuple[float, float]], clip_range: float
) -> None:
    old, advantages = torch.tensor(tokens, dtype=torch.float64).T
    logprobs = old.clone().requires_grad_()
    loss = policy_loss(logprobs - old, advantages, clip_range, clip_range)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert torch.equal(loss, -advantages)
    assert torch.equal(logprobs.grad, -advantages)  # a clipped token's would be 0
    assert not kl_k1(old, old).any()
    assert not kl_k3(old, old).any()


@deterministic
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1))
def test_k3_is_never_negative_and_0_only_for_equal_probabilities(
    pairs: list[tuple[float, float]],
) -> None:
    policy, ref = torch.tensor(pairs, dtype=torch.float64).T
    found = kl_k3(policy, ref)
    assert (found >= 0).all()
    assert (found[(policy - ref).abs() > 1e-6] > 0).all()


@deterministic
@given(EIGHTHS, st.integers(-1000, 1000), st.integers(0, 5))
def test_whiten_ignores_a_shift_and_gives_mean_0_and_std_1(
    eighths: list[int], shift: int, columns: int
) -> None:
    values, mask = batch([[x / 8 for x in eighths], [0.5] * columns], math.nan)
    white = whiten(values, mask)
    assert torch.allclose(whiten(values + shift, mask), white, rtol=0, atol=1e-9)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-9)
    assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()
