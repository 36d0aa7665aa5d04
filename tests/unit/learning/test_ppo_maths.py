"""Advantages, losses and gradients of PPO against hand tables and exact enumeration."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import pad

from reasonrl.learning.functional import (
    adapt_kl_coef,
    explained_variance,
    generalized_advantages,
    masked_sum,
    off_policy_weights,
    policy_loss,
    token_logprobs,
    value_loss,
    whiten,
)

# Three real tokens and two; what stands on the last position of the second row must not matter.
MASK = torch.tensor([[True, True, True], [True, True, False]])
REWARDS = torch.tensor([[-0.1, 0.2, 1.0], [0.0, 1.0, 1e6]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.6, 0.8], [0.5, 0.6, math.nan]], dtype=torch.float64)


def rows(*expected: list[float]) -> list:
    return [pytest.approx(row, abs=1e-9) for row in expected]


def test_off_policy_weights_by_hand() -> None:
    # quotients 1, 1.5, 3, 1/2 and 1/3 of the learner's probability by the sampler's
    own = torch.tensor([0.1, 0.3, 0.3, 0.2, 0.1]).log().requires_grad_()
    sampled = torch.tensor([0.1, 0.2, 0.1, 0.4, 0.3]).log()
    expected = {
        "none": [1, 1, 1, 1, 1],
        "tis": [1, 1.5, 2, 0.5, 1 / 3],
        "mask": [1, 1.5, 0, 0.5, 0],
    }
    for correction, wanted in expected.items():
        weights = off_policy_weights(own, sampled, correction, 2.00001)
        assert weights.tolist() == pytest.approx(wanted, abs=1e-4)
        assert not weights.requires_grad
    with pytest.raises(ValueError, match="none, tis or mask"):
        off_policy_weights(own, sampled, "both", 2.0)


def test_advantages_by_hand() -> None:
    # γ = 0.9, λ = 0.5, γλ = 0.45
    # δ = -0.1 + 0.9·0.6 - 0.5 = -0.06, 0.2 + 0.9·0.8 - 0.6 = 0.32, 1 - 0.8 = 0.2
    # A_3 = 0.2, A_2 = 0.32 + 0.45·0.2 = 0.41, A_1 = -0.06 + 0.45·0.41 = 0.1245
    # second row: δ = 0.9·0.6 - 0.5 = 0.04, 1 - 0.6 = 0.4; A_1 = 0.04 + 0.45·0.4 = 0.22
    advantages, returns = generalized_advantages(REWARDS, VALUES, MASK, 0.9, 0.5)
    assert advantages.tolist() == rows([0.1245, 0.41, 0.2], [0.22, 0.4, 0.0])
    # A + V
    assert returns.tolist() == rows([0.6245, 1.01, 1.0], [0.72, 1.0, 0.0])


def test_with_lambda_1_and_gamma_1_returns_are_the_rewards_to_come() -> None:
    # -0.1 + 0.2 + 1, 0.2 + 1, 1; less the values
    advantages, returns = generalized_advantages(REWARDS, VALUES, MASK, 1.0, 1.0)
    assert returns.tolist() == rows([1.1, 1.2, 1.0], [1.0, 1.0, 0.0])
    assert advantages.tolist() == rows([0.6, 0.6, 0.2], [0.5, 0.4, 0.0])


def test_with_lambda_0_advantages_are_one_step_differences() -> None:
    # the δ of the first test; returns r + 0.9 V' = 0.44, 0.92, 1 and 0.54, 1
    advantages, returns = generalized_advantages(REWARDS, VALUES, MASK, 0.9, 0.0)
    assert advantages.tolist() == rows([-0.06, 0.32, 0.2], [0.04, 0.4, 0.0])
    assert returns.tolist() == rows([0.44, 0.92, 1.0], [0.54, 1.0, 0.0])


def test_a_score_on_the_last_real_token_is_every_tokens_return() -> None:
    """Also in a shorter row, in one of one token, and in an empty one, where there is none."""
    lengths = torch.tensor([4, 2, 1, 0])
    mask = torch.arange(4) < lengths[:, None]
    rewards = torch.tensor(
        [[0.0, 0.0, 0.0, 1.0], [0.0, 0.75, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0], [0.0] * 4]
    )
    advantages, returns = generalized_advantages(rewards, torch.zeros(4, 4), mask, 1.0, 1.0)
    expected = [[1.0] * 4, [0.75, 0.75, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0], [0.0] * 4]
    assert returns.tolist() == expected
    assert advantages.tolist() == expected


def test_no_gradient_flows_through_returns() -> None:
    values = VALUES.clone().requires_grad_()
    assert not any(x.requires_grad for x in generalized_advantages(REWARDS, values, MASK, 1, 0.95))


@pytest.mark.parametrize("row", [[False, True, True], [True, False, True]])
def test_a_mask_that_is_no_prefix_is_refused(row: list[bool]) -> None:
    with pytest.raises(ValueError, match="prefix of every row"):
        generalized_advantages(REWARDS, VALUES, torch.tensor([[True] * 3, row]), 1.0, 1.0)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    # ε = 0.2. d(-ρA) / d log ρ = -ρA, and 0 where the clipped side is the smaller.
    [
        (2.0, 0.5, -1.0, -1.0),  # min(1, 0.8·2): less likely than before, to be made likelier
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 1.5, -2.4, 0.0),  # min(3, 1.2·2): likely enough
        (-2.0, 0.5, 1.6, 0.0),  # min(-1, -1.6): unlikely enough
        (-2.0, 1.1, 2.2, 2.2),
        (-2.0, 1.5, 3.0, 3.0),  # min(-3, -2.4)
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_policy_loss_in_all_quadrants(
    advantage: float, ratio: float, loss: float, gradient: float
) -> None:
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    found = policy_loss(logprobs - old, torch.full_like(old, advantage), 0.2, 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-9)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip_range", "loss", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.2, 0.405, -0.9),  # within: ½ 0.9²
        (1.5, 1.0, 2.0, 0.2, 0.32, 0.0),  # at 1.2: ½ max(0.5², 0.8²)
        (1.5, 1.0, 0.0, 0.2, 1.125, 1.5),  # ½ max(1.5², 1.2²): it went the wrong way
        (0.5, 1.0, 0.0, 0.2, 0.32, 0.0),  # at 0.8: ½ max(0.5², 0.8²)
        (0.5, 1.0, 2.0, 0.2, 1.125, -1.5),  # ½ max(1.5², 1.2²)
        (2.0, 3.0, 2.0, 0.2, 0.32, 0.0),  # at 2.8: ½ max(0², 0.8²), around the old value
        (1.5, 1.0, 2.0, 1.0, 0.125, -0.5),  # within a wider range
        (1.5, 1.0, 2.0, None, 0.125, -0.5),  # ½ 0.5²
        (0.5, 1.0, 2.0, None, 1.125, -1.5),
    ],
)
def test_value_loss_by_hand(
    value: float,
    old: float,
    target: float,
    clip_range: float | None,
    loss: float,
    gradient: float,
) -> None:
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found = value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), clip_range)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_gradients_of_the_losses_are_those_of_finite_differences() -> None:
    """On both sides of every kink, none of them nearer than 0.05."""
    old = torch.tensor([[-1.0, -0.5, -2.0, -0.1, -1.5, -3.0]], dtype=torch.float64)
    logprobs = old + torch.tensor([[-0.5, 0.1, 0.5, -0.5, 0.1, 0.5]])
    advantages = torch.tensor([[1.0, 2.0, 0.5, -1.0, -2.0, -0.5]], dtype=torch.float64)
    assert gradcheck(
        lambda x: policy_loss(x - old, advantages, 0.2, 0.2), (logprobs.requires_grad_(),)
    )

    old_values = torch.zeros_like(old)
    values = torch.tensor([[0.1, 0.5, 0.5, -0.5, -0.5, -0.1]], dtype=torch.float64)
    returns = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0, 0.3]], dtype=torch.float64)
    values.requires_grad_()
    assert gradcheck(lambda v: value_loss(v, old_values, returns, 0.2), (values,))
    assert gradcheck(lambda v: value_loss(v, old_values, returns, None), (values,))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1.0),
        ([11.0, 12.0, 13.0, 14.0], 1.0),  # off by a constant
        ([2.0, 2.0, 2.0, 2.0], 0.0),
        ([1.0, 2.0, 3.0, 2.0], 0.4),  # residuals 0, 0, 0, 2: variance 0.75 of 1.25
        ([4.0, 3.0, 2.0, 1.0], -3.0),  # residuals -3, -1, 1, 3: variance 5 of 1.25
    ],
)
def test_explained_variance_by_hand(values: list[float], expected: float) -> None:
    returns = torch.tensor([[1.0, 2.0, 1e6], [3.0, 4.0, math.nan]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    predicted = torch.tensor([[*values[:2], math.nan], [*values[2:], -1e6]])
    assert explained_variance(predicted, returns, mask) == pytest.approx(expected, abs=1e-6)


def test_where_returns_are_all_the_same_nothing_is_explained() -> None:
    returns = torch.full((7, 37), 0.1)  # whose computed variance isn't 0
    mask = torch.ones_like(returns, dtype=torch.bool)
    assert math.isnan(explained_variance(torch.rand(7, 37), returns, mask))
    assert math.isnan(explained_variance(returns, returns, ~mask))


@pytest.mark.parametrize(
    ("kl", "expected"),
    # β = 0.05, 1024 rollouts of a horizon of 10,000: β (1 + 0.1024 e)
    [
        (6.0, 0.05),
        (6.6, 0.050512),  # e = 0.1
        (5.4, 0.049488),  # e = -0.1
        (60.0, 0.051024),  # e = 9, clipped to 0.2
        (0.0, 0.048976),  # e = -1, clipped to -0.2
        (-3.0, 0.048976),  # an estimate of KL may be negative
    ],
)
def test_adapted_kl_coef_by_hand(kl: float, expected: float) -> None:
    assert adapt_kl_coef(0.05, kl, 6.0, 10_000, 1024) == pytest.approx(expected, abs=1e-12)


# The score of each two-token completion over three tokens.
SCORES = [[1.0, 0.0, -0.5], [0.3, 2.0, 0.0], [0.0, -1.0, 0.7]]
# Of the first token; then of the second after each first one.
LOGITS = [[0.2, -0.4, 1.0], [0.5, 0.0, -1.0], [-0.3, 0.8, 0.1], [0.0, 0.6, -0.7]]


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(x) for x in logits]
    return [w / sum(weights) for w in weights]


def expected_score(logits: list[list[float]]) -> float:
    first, *second = map(softmax, logits)
    return sum(first[a] * second[a][b] * SCORES[a][b] for a, b in product(range(3), repeat=2))


@pytest.mark.parametrize("baseline", [[0.0, 0.0, 0.0, 0.0], [0.4, -0.2, 1.5, 0.3]])
def test_gradient_of_policy_loss_is_that_of_the_expected_score(baseline: list[float]) -> None:
    """Summed over all completions by probability, at ρ = 1; V, of any value, changes nothing."""
    step = 1e-5
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for i, j in product(range(4), range(3)):
        up, down = ([list(row) for row in LOGITS] for _ in range(2))
        up[i][j] += step
        down[i][j] -= step
        expected[i, j] = (expected_score(up) - expected_score(down)) / (2 * step)

    parameters = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    completions = torch.tensor(list(product(range(3), repeat=2)))  # (9, 2)
    states = torch.stack([torch.zeros(9, dtype=torch.long), 1 + completions[:, 0]], dim=1)
    logprobs = token_logprobs(parameters[states], completions)
    old_logprobs = logprobs.detach()
    rewards = torch.zeros(9, 2, dtype=torch.float64)
    rewards[:, 1] = torch.tensor(SCORES, dtype=torch.float64).flatten()
    values = torch.tensor(baseline, dtype=torch.float64)[states]
    everywhere = torch.ones(9, 2, dtype=torch.bool)
    advantages, _ = generalized_advantages(rewards, values, everywhere, 1.0, 1.0)
    loss = policy_loss(logprobs - old_logprobs, advantages, 0.2, 0.2)
    (old_logprobs.sum(dim=1).exp()[:, None] * loss).sum().backward()
    assert parameters.grad is not None
    assert parameters.grad.tolist() == rows(*(-expected).tolist())
    assert expected.abs().max() > 0.1


def learn(rewards: Tensor, values: Tensor, logprobs: Tensor, mask: Tensor) -> list[Tensor]:
    """Advantages, returns, whitened advantages, and the gradients of both losses, all (B, T)."""
    advantages, returns = generalized_advantages(rewards, values, mask, 0.9, 0.5)
    white = whiten(advantages, mask)
    policy, value = logprobs.clone().requires_grad_(), values.clone().requires_grad_()
    old_logprobs, old_values = logprobs - 0.1, values - 0.1
    policy_loss(policy[mask] - old_logprobs[mask], white[mask], 0.2, 0.2).sum().backward()
    value_loss(value[mask], old_values[mask], returns[mask], 0.2).sum().backward()
    assert policy.grad is not None
    assert value.grad is not None
    return [advantages, returns, white, policy.grad, value.grad]


@pytest.mark.parametrize("garbage", [1e6, -1e6, math.inf, math.nan])
@pytest.mark.parametrize("columns", [1, 4])
def test_padding_changes_nothing(columns: int, garbage: float) -> None:
    logprobs = torch.tensor([[-1.0, -0.5, -2.0], [-0.1, -1.5, 0.0]], dtype=torch.float64)
    mask = pad(MASK, (0, columns))
    rewards, values, padded_logprobs = (
        pad(x.masked_fill(~MASK, garbage), (0, columns), value=garbage)
        for x in (REWARDS, VALUES, logprobs)
    )
    padded = learn(rewards, values, padded_logprobs, mask)
    for found, expected in zip(padded, learn(REWARDS, VALUES, logprobs, MASK), strict=True):
        assert torch.allclose(found[:, :3], expected, rtol=0, atol=1e-12)
        assert expected[MASK].abs().max() > 0.1
        assert not found[~mask].any()
    white = padded[2][mask]
    assert white.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white.std(correction=0).item() == pytest.approx(1.0, abs=1e-7)


def test_micro_batches_add_up_whatever_their_size() -> None:
    """1×8 and 8×1 of ragged completions, each divided by the number of tokens of all."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 7, 3, 5, 2, 6, 4, 7])  # 35 tokens
    mask = torch.arange(7) < lengths[:, None]
    ids = torch.randint(5, (8, 7), generator=generator)
    table = torch.randn(5, 5, generator=generator, dtype=torch.float64)  # logits after each token
    old = torch.randn(8, 7, generator=generator, dtype=torch.float64) * 0.3 - 1.6
    advantages = torch.randn(8, 7, generator=generator, dtype=torch.float64)

    def gradient(size: int) -> Tensor:
        parameters = table.clone().requires_grad_()
        for part in torch.arange(8).split(size):
            width = int(lengths[part].max())  # each pads to its own longest
            now = (part, slice(width))
            logits = parameters[ids.roll(1, dims=1)[now]]
            loss = policy_loss(
                token_logprobs(logits, ids[now]) - old[now], advantages[now], 0.2, 0.2
            )
            (masked_sum(loss, mask[now]) / 35).backward()
        assert parameters.grad is not None
        return parameters.grad

    for size in (1, 3):
        assert torch.allclose(gradient(size), gradient(8), rtol=0, atol=1e-12)
    assert gradient(8).abs().max() > 0.01


def test_every_token_of_a_batch_weighs_the_same() -> None:
    # at ρ = 1 the gradient is -A / 5: 2 and 3 tokens in two micro-batches, 5 in all
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    for row in range(2):
        loss = policy_loss(logprobs[row] + 1.0, torch.tensor([2.0, -1.0, 1.0]), 1, 1)
        (masked_sum(loss, MASK[row]) / 5).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [
        pytest.approx([-0.4, 0.2, -0.2], abs=1e-6),
        pytest.approx([-0.4, 0.2, 0.0], abs=1e-6),
    ]
