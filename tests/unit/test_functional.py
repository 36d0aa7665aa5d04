"""Log-probabilities against values computed by hand."""

import math

import pytest
import torch

from reasonrl.functional import masked_sum, token_logprobs

# Two positions over three tokens; the logits are logarithms of small numbers.
LOGITS = torch.tensor([[[math.log(1), math.log(2), math.log(5)], [0.0, math.log(4), math.log(4)]]])


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
