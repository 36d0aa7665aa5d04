"""What holds for any sample of answers."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.metrics import (
    bootstrap_mean,
    majority_vote,
    majority_vote_at_k,
    paired_difference,
    pass_at_k,
    unique_fraction,
)

deterministic = settings(derandomize=True, deadline=None, max_examples=50)

ROWS = st.lists(st.sampled_from(["18", "7", "3", None]), min_size=1, max_size=7)
CORRECT = st.lists(st.booleans(), min_size=1, max_size=96).map(lambda row: np.array([row]))


@deterministic
@given(CORRECT)
def test_pass_at_k_rises_from_mean_accuracy_to_any_correct(correct):
    curve = np.array([pass_at_k(correct, k)[0] for k in range(1, correct.shape[1] + 1)])
    assert curve[0] == pytest.approx(correct.mean(), abs=1e-9)
    assert curve[-1] == float(correct.any())
    assert (np.diff(curve) >= -1e-12).all()


@deterministic
@given(CORRECT, st.randoms(use_true_random=False), st.data())
def test_pass_at_k_ignores_the_order_of_samples_and_other_problems(correct, random, data):
    k = data.draw(st.integers(1, correct.shape[1]))
    shuffled = random.sample(correct[0].tolist(), correct.shape[1])
    both = pass_at_k(np.array([shuffled, correct[0]]), k)
    assert both.tolist() == pass_at_k(correct, k).tolist() * 2


@deterministic
@given(ROWS, st.randoms(use_true_random=False))
def test_the_vote_ignores_order_repetition_and_unparsed_answers(row, random):
    score = majority_vote([row], ["18"])
    shuffled = random.sample(row, len(row))
    for same in (shuffled, row * 3, [*row, None, None]):
        assert majority_vote([same], ["18"]) == pytest.approx(score, abs=1e-12)


@deterministic
@given(ROWS)
def test_the_expected_scores_of_all_golds_share_one_vote(row):
    total = sum(majority_vote([row], [gold])[0] for gold in ("18", "7", "3"))
    assert total == pytest.approx(float(any(answer is not None for answer in row)), abs=1e-12)


@deterministic
@given(ROWS, st.data())
def test_the_vote_of_k_is_within_four_standard_errors_of_enumeration(row, data):
    k = data.draw(st.integers(1, len(row)))
    subsets = [list(subset) for subset in combinations(row, k)]
    scores = majority_vote(subsets, ["18"] * len(subsets))  # checked by hand in the unit tests
    estimate = majority_vote_at_k([row], ["18"], k, num_subsets=1_000, seed=0)[0]
    assert abs(estimate - scores.mean()) <= 4 * scores.std() / np.sqrt(1_000) + 1e-12


@deterministic
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_unique_fraction_lies_between_one_sample_and_all(traces):
    fractions = unique_fraction(traces)
    assert (fractions <= 1).all()
    assert (fractions >= [1 / len(row) for row in traces]).all()


@deterministic
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_interval_lies_within_the_values_and_a_swap_mirrors_the_difference(pairs):
    a, b = np.array(pairs).T
    estimate = bootstrap_mean(a, num_resamples=200)
    assert a.min() - 1e-12 <= estimate.low <= estimate.high <= a.max() + 1e-12
    forth, back = (paired_difference(*pair, num_resamples=200) for pair in ((a, b), (b, a)))
    mirrored = [-back.value, -back.high, -back.low]
    assert [forth.value, forth.low, forth.high] == pytest.approx(mirrored, abs=1e-9)
