"""Log-probabilities, entropy, KL and masked statistics against values computed by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from reasonrl.learning.functional import (
    entropy,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_sum,
    token_logprobs,
    whiten,
)

# Two positions over three tokens; the logits are logarithms of small numbers.
LOGITS = torch.tensor([[[math.log(1), math.log(2), math.log(5)], [0.0, math.log(4), math.log(4)]]])

# Two distributions over five tokens.
POLICY = [0.4, 0.3, 0.15, 0.1, 0.05]
REFERENCE = [0.1, 0.2, 0.3, 0.15, 0.25]


def test_logprobs_are_those_of_the_given_tokens() -> None:
    # softmax of logs 1, 2, 5 is 1/8, 2/8, 5/8; of logs 1, 4, 4 it is 1/9, 4/9, 4/9
    found = token_logprobs(LOGITS, torch.tensor([[2, 0]]))
    assert found.tolist()[0] == pytest.approx([math.log(5 / 8), math.log(1 / 9)], abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    # T = 1/2 squares what the softmax weighs: 1, 4, 25 of 30 and 1, 16, 16 of 33
    found = token_logprobs(LOGITS, torch.tensor([[1, 2]]), temperature=0.5)
    assert found.tolist()[0] == pytest.approx([math.log(4 / 30), math.log(16 / 33)], abs=1e-6)


def test_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.tensor([[[0.0, 8.0]]], dtype=torch.bfloat16)
    found = token_logprobs(logits, torch.tensor([[1]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(-math.log1p(math.exp(-8)), abs=1e-7)  # -0.000335406


def test_masked_sum_ignores_what_the_mask_leaves_out_whatever_it_is() -> None:
    values = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 0.5, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    total = masked_sum(values, mask)
    total.backward()
    assert total.item() == 4.5  # 1 + 3 + 0.5
    assert values.grad is not None
    assert values.grad.tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("function", [token_logprobs, lambda logits, _: entropy(logits)])
def test_float64_stays_and_gradients_are_those_of_finite_differences(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    logits = LOGITS.double().requires_grad_()
    token_ids = torch.tensor([[2, 0]])
    assert function(logits, token_ids).dtype == torch.float64
    assert gradcheck(function, (logits, token_ids))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
def test_entropy_is_minus_the_sum_of_p_log_p(temperature: float) -> None:
    weights = [p ** (1 / temperature) for p in POLICY]
    shares = [w / sum(weights) for w in weights]
    expected = -sum(p * math.log(p) for p in shares)
    found = entropy(torch.tensor([[POLICY]], dtype=torch.float64).log(), temperature)
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_entropy_by_hand_in_nats_for_each_position() -> None:
    # 1/8, 1/4, 5/8: (3 ln 2)/8 + (2 ln 2)/4 + (5/8) ln 1.6 = 0.606504 + 0.293752
    # 1/9, 4/9, 4/9: (ln 9)/9 + (8/9) ln 2.25 = 0.244136 + 0.720827
    assert entropy(LOGITS).tolist()[0] == pytest.approx([0.900256, 0.964963], abs=1e-5)


def test_a_token_of_probability_0_adds_nothing_to_entropy_nor_to_its_gradient() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 0.0], [0.0, -1e9, 1e9]]], requires_grad=True)
    found = entropy(logits)
    found.sum().backward()
    assert found.tolist()[0] == pytest.approx([math.log(2), 0.0], abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    # p = 1/(1 + e^8) = 0.000335350: H = 8p + ln(1 + e^-8) = 0.002682801 + 0.000335406
    found = entropy(torch.tensor([[[0.0, 8.0]]], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.003018207, abs=1e-7)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
@pytest.mark.parametrize(("policy", "ref"), [(POLICY, REFERENCE), (REFERENCE, POLICY)])
def test_kl_estimators_are_unbiased_for_tokens_of_the_policy(
    estimator: Callable[[Tensor, Tensor], Tensor], policy: list[float], ref: list[float]
) -> None:
    exact = sum(p * math.log(p / q) for p, q in zip(policy, ref, strict=True))
    probabilities, reference = torch.tensor([policy, ref], dtype=torch.float64)
    per_token = estimator(probabilities.log(), reference.log())
    assert (probabilities * per_token).sum().item() == pytest.approx(exact, abs=1e-12)


def test_kl_estimators_by_hand() -> None:
    # π = 0.8, 0.2, 0.5 and π_ref = 0.2, 0.8, 0.5: k1 = ln 4, -ln 4, 0; r = 1/4, 4, 1 and
    # k3 = 0.25 - 1 + ln 4, 4 - 1 - ln 4, 0
    policy, ref = torch.tensor([[0.8, 0.2, 0.5], [0.2, 0.8, 0.5]]).log()
    assert kl_k1(policy, ref).tolist() == pytest.approx([1.386294, -1.386294, 0.0], abs=1e-6)
    assert kl_k3(policy, ref).tolist() == pytest.approx([0.636294, 1.613706, 0.0], abs=1e-6)


def test_k3_keeps_its_digits_where_the_policies_hardly_differ() -> None:
    # x = -0.001: e^x - 1 - x = x²/2 + x³/6 = 5e-7 - 1.667e-10, 6% off if computed as exp(x) - 1
    ratio = kl_k3(torch.tensor([0.0]), torch.tensor([-0.001]))
    assert ratio.item() == pytest.approx(4.998334e-7, rel=1e-3)


def test_gradient_of_k3_is_that_of_finite_differences() -> None:
    policy, ref = torch.tensor([POLICY, REFERENCE], dtype=torch.float64).log()
    assert gradcheck(kl_k3, (policy.requires_grad_(), ref))


def test_masked_mean_is_over_real_tokens_of_all_rows_alike() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [7.0, math.nan, 1e6]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert masked_mean(values, mask).item() == 4.0  # (1 + 2 + 6 + 7) / 4, rows' means: 5
    assert masked_mean(values > 1.5, mask).item() == 0.75  # a share


def test_masked_mean_of_bfloat16_values_is_computed_in_float32() -> None:
    # (256 + 258) / 2; bfloat16 has neither the sum 514 nor the mean 257
    values = torch.tensor([[256.0, 258.0]], dtype=torch.bfloat16)
    assert masked_mean(values, torch.tensor([[True, True]])).item() == 257.0


def test_masked_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_mask must be True somewhere"):
        masked_mean(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))


def test_whiten_by_hand() -> None:
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5, so (x - 4) / 2.2360680
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, 7.0, 1e6]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    assert whiten(values, mask).tolist() == [
        pytest.approx([-1.3416408, -0.4472136, 0.0], abs=1e-6),
        pytest.approx([0.4472136, 1.3416408, 0.0], abs=1e-6),
    ]


def test_whiten_always_centres() -> None:
    """Were the mean added back, all would be positive, and every token would be pushed up."""
    white = whiten(torch.tensor([[100.0, 101.0, 102.0, 1e6]]), torch.tensor([[True] * 3 + [False]]))
    assert white.sum().item() == pytest.approx(0.0, abs=1e-6)
    # 1 / sqrt(2/3) = 1.2247449
    assert white.tolist()[0] == pytest.approx([-1.2247449, 0.0, 1.2247449, 0.0], abs=1e-5)


def test_whiten_makes_nothing_of_equal_values() -> None:
    """0.1 isn't a float32: the mean of many is a little off, and so is the distance from it."""
    values = torch.full((7, 37), 0.1)
    assert whiten(values, torch.ones_like(values, dtype=torch.bool)).abs().max().item() < 1e-6


def test_whiten_of_bfloat16_values_is_computed_in_float32() -> None:
    # mean 257, which bfloat16 lacks; std 1
    white = whiten(torch.tensor([[256.0, 258.0]], dtype=torch.bfloat16), torch.tensor([[True] * 2]))
    assert white.dtype == torch.float32
    assert white.tolist()[0] == pytest.approx([-1.0, 1.0], abs=1e-6)
