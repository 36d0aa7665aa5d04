"""Metrics against hand-computed numbers and brute-force enumeration."""

import time
import warnings
from itertools import combinations

import numpy as np
import pytest

from reasonrl.errors import UserError
from reasonrl.metrics import (
    Estimate,
    bootstrap_mean,
    majority_vote,
    majority_vote_at_k,
    paired_difference,
    pass_at_k,
    unique_correct,
    unique_fraction,
)


def row(num_correct, num_samples):
    return np.arange(num_samples)[None, :] < num_correct


# pass@k


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n):
    for num_correct in range(n + 1):
        correct = row(num_correct, n)
        for k in range(1, n + 1):
            subsets = list(combinations(correct[0], k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(correct, k) == pytest.approx([share], abs=1e-12)


def test_pass_at_k_by_hand():
    correct = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=bool)
    # k = 2, C(4, 2) = 6: 1 − C(3, 2)/6 = 1/2;  1 − C(2, 2)/6 = 5/6;  1 − 6/6 = 0;  1 − 0/6 = 1
    assert pass_at_k(correct, 2) == pytest.approx([1 / 2, 5 / 6, 0, 1], abs=1e-12)


def test_pass_at_k_at_96_samples():
    # Drawing with replacement would give 1 − (95/96)**96 = 0.634 for the first.
    assert pass_at_k(row(1, 96), 96).tolist() == [1.0]
    assert pass_at_k(row(0, 96), 96).tolist() == [0.0]
    assert pass_at_k(row(1, 96), 48) == pytest.approx([0.5], abs=1e-12)  # 48 of 96 places
    # C(94, 48) / C(96, 48) = 48 · 47 / (96 · 95)
    assert pass_at_k(row(2, 96), 48) == pytest.approx([1 - 48 * 47 / (96 * 95)], abs=1e-12)
    assert pass_at_k(row(96, 96), 1).tolist() == [1.0]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_pass_at_k_refuses_a_k_beyond_the_samples(k):
    with pytest.raises(UserError, match=rf"k={k} must .* got num_samples_per_prompt=4"):
        pass_at_k(row(1, 4), k)


# maj@k


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["18", "18", "7"], 1),
        (["7", "18", "7"], 0),
        (["18", "7"], 1 / 2),
        (["18", "7", "18", "7", "3"], 1 / 2),
        (["18", "7", "3"], 1 / 3),
        (["7", "3"], 0),
        ([None, None, "18"], 1),
        ([None, None, "7", "18"], 1 / 2),
        ([None, None], 0),
        (["18"], 1),
    ],
)
def test_majority_vote(answers, score):
    assert majority_vote([answers], ["18"]) == pytest.approx([score], abs=1e-12)


def test_majority_vote_scores_each_problem_by_its_own_gold():
    answers = [["18", "18", "7"], ["18", "18", "7"], ["5"]]
    assert majority_vote(answers, ["18", "7", "5"]).tolist() == [1.0, 0.0, 1.0]


def test_majority_vote_refuses_a_missing_gold():
    with pytest.raises(UserError, match=r"len\(golds\)=1 must .* got len\(answers\)=2"):
        majority_vote([["18"], ["7"]], ["18"])


def test_majority_vote_at_k_estimates_the_mean_over_subsets():
    # Pairs of 18 18 7 7 None, C(5, 2) = 10: {18 18}, 2 × {18 None} → 1 each;
    # 4 × {18 7} → 1/2 each; {7 7}, 2 × {7 None} → 0. Mean (3 + 2) / 10 = 0.5.
    # Triples: 2 × {18 18 7}, {18 18 None} → 1; 4 × {18 7 None} → 1/2; 3 without. (3 + 2) / 10 = 0.5
    # Pairs of 18 7 3, C(3, 2) = 3: {18 7}, {18 3} → 1/2 each; {7 3} → 0. Mean 1/3.
    # Pairs of 18 18 18 7, 6: 3 × {18 18} → 1; 3 × {18 7} → 1/2. Mean 4.5 / 6 = 0.75.
    # 4,000 subsets: standard error at most 0.5 / √4000 = 0.008.
    answers = [["18", "18", "7", "7", None]]
    for given, k, expected in [
        (answers, 2, 0.5),
        (answers, 3, 0.5),
        ([["18", "7", "3"]], 2, 1 / 3),
        ([["18", "18", "18", "7"]], 2, 0.75),
    ]:
        estimate = majority_vote_at_k(given, ["18"], k, num_subsets=4_000, seed=1)
        assert estimate == pytest.approx([expected], abs=0.03)


def test_majority_vote_at_one_is_mean_accuracy():
    # 18 is 3 of 4 samples; one sample votes for itself.
    estimate = majority_vote_at_k([["18", "18", "18", None]], ["18"], 1, num_subsets=4_000)
    assert estimate == pytest.approx([0.75], abs=0.03)


def test_majority_vote_at_n_is_exact_and_seeded_below():
    answers = [["18", "7", "3"], ["18", "18", "7"]]
    golds = ["18", "18"]
    assert majority_vote_at_k(answers, golds, 3, num_subsets=1) == pytest.approx([1 / 3, 1])
    once = majority_vote_at_k(answers, golds, 2, num_subsets=8, seed=5)
    assert once.tolist() == majority_vote_at_k(answers, golds, 2, num_subsets=8, seed=5).tolist()


@pytest.mark.parametrize("k", [0, 4])
def test_majority_vote_at_k_refuses_a_k_beyond_the_samples(k):
    with pytest.raises(UserError, match=f"k={k} must .* got num_samples_per_prompt=3"):
        majority_vote_at_k([["18", "7", "3"]], ["18"], k)


# Diversity


def test_unique_traces():
    traces = [
        [("3+4=7",), ("3+4=7",), ("4+3=7",), ()],
        [(), (), (), ()],
        [("1+1=2",), ("1+1=2", "2+1=3"), ("2+1=3",), ("2+1=3", "1+1=2")],
    ]
    correct = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    assert unique_fraction(traces).tolist() == [0.75, 0.25, 1.0]
    assert unique_correct(traces, correct).tolist() == [2, 0, 2]


def test_unique_correct_refuses_other_problems():
    with pytest.raises(UserError, match=r"len\(correct\)=1 must .* got len\(traces\)=2"):
        unique_correct([[()], [()]], np.ones((1, 1), dtype=bool))


# Intervals


def test_the_interval_at_the_size_of_gsm8k():
    # 607 / 1319 = 0.46; half-width 1.96 · √(0.46 · 0.54 / 1319) = 0.0269: 2.7 points
    estimate = bootstrap_mean(np.arange(1319) < 607)
    assert estimate.value == pytest.approx(0.4602, abs=1e-4)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.0269, abs=1e-3)
    assert estimate.low == pytest.approx(0.4602 - 0.0269, abs=2e-3)
    assert estimate.n == 1319


def test_the_interval_follows_confidence_and_not_the_seed():
    values = np.arange(400) < 200
    # Half-widths z · √(0.25 / 400) = z · 0.025: 0.0411 at 90% (z = 1.645), 0.0644 at 99% (2.576)
    for confidence, half_width in [(0.90, 0.0411), (0.99, 0.0644)]:
        for seed in (0, 1):
            estimate = bootstrap_mean(values, seed=seed, confidence=confidence)
            assert (estimate.high - estimate.low) / 2 == pytest.approx(half_width, abs=3e-3)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)


@pytest.mark.parametrize("values", [[0.0] * 50, [1.0] * 50, [0.3] * 7, [1.0]])
def test_equal_values_give_an_interval_of_width_0_without_a_warning(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = bootstrap_mean(np.array(values))
    expected = pytest.approx(values[0], abs=1e-12)
    assert (estimate.value, estimate.low, estimate.high) == (expected, expected, expected)
    assert estimate.n == len(values)


@pytest.mark.parametrize("values", [[], [[1.0, 0.0]], [1.0, float("nan")], [float("inf"), 0.0]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(UserError, match="values must hold one finite number per problem"):
        bootstrap_mean(np.array(values))


def test_pairing_establishes_what_two_intervals_do_not():
    # Both runs solve the first 600 of 1,319; b also solves 53 more: 53 / 1319 = 4.02 points.
    # Paired: 1.96 · √(0.0402 · 0.9598 / 1319) = 0.0106. Unpaired: 0.0269 each, so they overlap.
    a, b = np.arange(1319) < 600, np.arange(1319) < 653
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.0402, abs=1e-4)
    assert (difference.high - difference.low) / 2 == pytest.approx(0.0106, abs=1e-3)
    assert difference.excludes_zero()
    assert bootstrap_mean(a).high > bootstrap_mean(b).low
    assert paired_difference(b, a).value == pytest.approx(-0.0402, abs=1e-4)
    assert paired_difference(b, a).excludes_zero()


def test_a_difference_of_nothing_is_not_established():
    # 20 problems won and 20 lost: mean 0.
    a, b = np.arange(100) < 60, (np.arange(100) >= 20) & (np.arange(100) < 80)
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.0, abs=1e-12)
    assert not difference.excludes_zero()
    assert not paired_difference(a, a).excludes_zero()
    assert not paired_difference(np.array([0.0]), np.array([1.0])).excludes_zero()


def test_a_pair_of_unequal_lengths_is_refused():
    with pytest.raises(UserError, match=r"len\(b\)=3 must .* got len\(a\)=2"):
        paired_difference(np.zeros(2), np.zeros(3))


def test_estimates_print_in_percent():
    assert str(Estimate(0.471, 0.442, 0.5, n=1319)) == "47.1% [44.2, 50.0]"
    assert str(Estimate(-1e-9, -0.03, 0.021, n=9)) == "0.0% [-3.0, 2.1]"


def test_the_bootstrap_is_fast():
    values, seconds = np.arange(1319) < 607, []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.process_time()
        bootstrap_mean(values)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3
