"""What solutions weigh, and which policy gradient fine-tuning on them then is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from reasonrl.learning.supervised import Example, Reader, accumulate_gradients
from reasonrl.learning.weighting import problem_weights, spread
from tests.unit.learning.test_supervised import Bigram


def test_every_problem_weighs_the_same_and_the_mean_is_one() -> None:
    # 6 solutions of 3 problems: 2 for each problem
    weights = problem_weights(["a", "b", "a", "a", "c", "c"])
    assert weights == pytest.approx([2 / 3, 2.0, 2 / 3, 2 / 3, 1.0, 1.0])
    assert sum(weights) == pytest.approx(6)
    assert problem_weights([]) == []


def test_how_weight_is_spread_over_problems() -> None:
    rates = {"easy": 0.75, "even": 0.5, "hard": 0.25, "unsolved": 0.0}
    by_sample = [("easy", 1.0), ("easy", 1.0), ("easy", 1.0), ("even", 1.0), ("hard", 1.0)]
    # 3, 1 and 1: 25 / 11 problems
    assert spread(by_sample, rates) == pytest.approx(
        {"hard_weight": 0.2, "effective_problems": 25 / 11}
    )
    ids = [problem_id for problem_id, _ in by_sample]
    by_problem = zip(ids, problem_weights(ids), strict=True)
    assert spread(by_problem, rates) == pytest.approx(
        {"hard_weight": 1 / 3, "effective_problems": 3.0}
    )


# Four samples of each of three questions, with rewards of 0 and 1. The ids of a table of 5.
QUESTIONS = {"a": (4,), "b": (3, 1), "c": (2,)}
SAMPLES = {
    "a": [((1, 2, 0), 1), ((3, 3), 0), ((2, 1, 4, 0), 1), ((1, 0), 1)],
    "b": [((4, 2), 0), ((0, 4, 1), 0), ((2, 2, 3, 1, 0), 1), ((1,), 0)],
    "c": [((1, 1), 0), ((2, 0), 0), ((3, 0), 0), ((4,), 0)],  # none is right: it teaches nothing
}


def table() -> Bigram:
    model = Bigram().double()
    with torch.no_grad():
        model.table.copy_(torch.randn(5, 5, generator=torch.manual_seed(0), dtype=torch.float64))
    return model


def policy_gradient(weigh: str) -> Tensor:
    """∇ Σ_q (1/K) Σ_i w_i log π(a_i | q), where w is r, or r over the question's mean r."""
    model = table()
    total = torch.zeros((), dtype=torch.float64)
    for question, samples in SAMPLES.items():
        mean = sum(reward for _, reward in samples) / len(samples)
        for ids, reward in samples:
            weight = reward if weigh == "r" or reward == 0 else reward / mean
            path = (*QUESTIONS[question][-1:], *ids)
            for before, after in pairwise(path):
                total = total + weight / len(samples) * model.table[before].log_softmax(-1)[after]
    total.backward()
    return gradient_of(model)


def gradient_of(model: nn.Module) -> Tensor:
    (parameter,) = model.parameters()
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize(("weighting", "weigh"), [("sample", "r"), ("problem", "r / mean r")])
def test_fine_tuning_on_right_samples_is_a_policy_gradient(weighting: str, weigh: str) -> None:
    right = [(q, ids) for q, samples in SAMPLES.items() for ids, reward in samples if reward]
    even = weighting == "problem"
    weights = problem_weights([q for q, _ in right]) if even else [None] * len(right)
    examples = [
        Example(QUESTIONS[q], ids, weight=w) for (q, ids), w in zip(right, weights, strict=True)
    ]
    model = table()
    accumulate_gradients(Reader(model), examples, 8, torch.float32)  # type: ignore[arg-type]
    # Of both constants, the tokens of all examples and the weight of a problem, neither turns it.
    num_tokens, per_problem = 3 + 4 + 2 + 5, 4 / 2
    learnt = -gradient_of(model) * num_tokens / (per_problem if even else 4)
    torch.testing.assert_close(learnt, policy_gradient(weigh), rtol=1e-12, atol=1e-14)
