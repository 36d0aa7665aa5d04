"""Metrics against hand-computed numbers and brute-force enumeration."""

from itertools import combinations

import numpy as np
import pytest

from reasonrl.grading.metrics import (
    auroc,
    best_of_n,
    expected_calibration_error,
    majority_vote,
    pass_at_k,
    reliability_bins,
    unique_correct,
    unique_fraction,
    weighted_vote,
)
from reasonrl.util.errors import UserError


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


# weighted vote


@pytest.mark.parametrize(
    ("answers", "weights", "score"),
    [
        (["18", "7", "7"], [0.9, 0.4, 0.4], 1),  # 0.9 > 0.8: the majority is outvoted
        (["18", "7", "7"], [0.7, 0.4, 0.4], 0),  # 0.7 < 0.8
        (["18", "7", "7"], [0.5, 0.25, 0.25], 1 / 2),
        # 0.1 + 0.2 + 0.3 = 0.6000000000000001 in floats, 0.3 + 0.2 + 0.1 = 0.6: a tie all the same
        (["18", "18", "18", "7", "7", "7"], [0.1, 0.2, 0.3, 0.3, 0.2, 0.1], 1 / 2),
        (["7", "7", "7", "18"], [0.1, 0.2, 0.3, 0.6], 1 / 2),
        (["18", "7"], [0.5, 0.5 + 1e-6], 0),  # no tie
        (["18", "7", "3"], [0.1, 0.1, 0.1], 1 / 3),
        ([None, "18", "7"], [0.9, 0.2, 0.1], 1),
        ([None, None], [0.9, 0.9], 0),
        (["18", "7"], [0.0, 0.1], 0),
        (["18", "18"], [0.0, 0.0], 0),
    ],
)
def test_weighted_vote(answers, weights, score):
    assert weighted_vote([answers], ["18"], [weights]) == pytest.approx([score], abs=1e-12)


def test_weighted_vote_takes_each_problem_with_its_own_gold_and_weights():
    # 18 by 0.9 to 0.8; 7 by 0.8 to 0.1; 5 alone
    answers = [["18", "7", "7"], ["18", "7", "7"], ["5"]]
    weights = [[0.9, 0.4, 0.4], [0.1, 0.4, 0.4], [0.2]]
    assert weighted_vote(answers, ["18", "18", "5"], weights).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_weighted_vote_refuses_what_is_no_weight(bad):
    with pytest.raises(UserError, match=r"weights\[1\] must be finite and not negative; got min="):
        weighted_vote([["18"], ["18", "7"]], ["18", "18"], [[0.5], [0.5, bad]])


def test_weighted_vote_refuses_missing_golds_and_weights():
    with pytest.raises(UserError, match=r"len\(golds\)=1 must .* got len\(answers\)=2"):
        weighted_vote([["18"], ["7"]], ["18"], [[1.0], [1.0]])
    with pytest.raises(UserError, match=r"len\(weights\)=1 must .* got len\(answers\)=2"):
        weighted_vote([["18"], ["7"]], ["18", "7"], [[1.0]])
    with pytest.raises(UserError, match=r"len\(weights\[1\]\)=1 must .* len\(answers\[1\]\)=2"):
        weighted_vote([["18"], ["7", "7"]], ["18", "7"], [[1.0], [1.0]])


# best of n


def test_best_of_n():
    correct = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 1, 0]], dtype=bool)
    scores = np.array([[3, 2, 1], [1, 2, 3], [2, 2, 1], [5, 5, 5], [2, 2, 1]], dtype=float)
    # The first is best; the last; a tie of right and wrong; of 2 right, 1 wrong; of two right
    assert best_of_n(correct, scores) == pytest.approx([1, 0, 1 / 2, 2 / 3, 1], abs=1e-12)


def test_best_of_n_refuses_other_shapes_and_what_cannot_be_ranked():
    with pytest.raises(UserError, match=r"len\(scores\[0\]\)=1 must .* len\(correct\[0\]\)=4"):
        best_of_n(row(1, 4), np.zeros((1, 1)))
    with pytest.raises(UserError, match="scores must be finite; got 1 of 4 that are not"):
        best_of_n(row(1, 4), np.array([[0.1, 0.2, float("nan"), 0.3]]))


# Reward models


@pytest.mark.parametrize(
    ("labels", "scores", "area"),
    [
        ([1, 0], [0.9, 0.1], 1),
        ([1, 0], [0.1, 0.9], 0),
        ([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], 1 / 2),
        # Pairs: 0.8 beats 0.5 and 0.3; 0.5 ties with 0.5, beats 0.3: (2 + 1 + 1/2) / 4
        ([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.3], 3.5 / 4),
        # 0.4 beats 0.1 of 0.9 0.4 0.1, ties with 0.4; 0.1 ties with 0.1: (1 + 1/2 + 1/2) / 6
        ([0, 1, 0, 1, 0], [0.9, 0.4, 0.4, 0.1, 0.1], 2 / 6),
    ],
)
def test_auroc_counts_pairs_and_half_of_ties(labels, scores, area):
    assert auroc(np.array(labels), np.array(scores)) == pytest.approx(area, abs=1e-12)


def test_auroc_refuses_a_single_class():
    with pytest.raises(UserError, match="got positives=3, negatives=0"):
        auroc(np.ones(3, dtype=bool), np.arange(3))
    with pytest.raises(UserError, match="got positives=0, negatives=2"):
        auroc(np.zeros(2, dtype=bool), np.arange(2))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 0], [0.1], r"labels.shape=\(2,\) must .* got scores.shape=\(1,\)"),
        ([[1, 0]], [[0.1, 0.2]], r"labels.shape=\(1, 2\) must"),
        ([1, 0], [0.1, float("nan")], "scores must be finite; got 1 of 2 that are not"),
        ([1, 0.5], [0.1, 0.2], "labels must be 0 or 1; got values from 0.5 to 1.0"),
    ],
)
def test_labels_and_scores_that_do_not_fit_are_refused(labels, scores, message):
    for metric in (auroc, expected_calibration_error):
        with pytest.raises(UserError, match=message):
            metric(np.array(labels), np.array(scores))


def test_reliability_bins_are_closed_on_the_right_and_left_out_where_empty():
    # Tenths: 0 and 0.1 in (0, 0.1], 0.3 in (0.2, 0.3], 0.31 and 0.35 in (0.3, 0.4], 1 in (0.9, 1].
    probabilities = np.array([0.31, 1.0, 0.0, 0.3, 0.1, 0.35])
    labels = np.array([1, 1, 0, 0, 1, 1], dtype=bool)
    bins = reliability_bins(labels, probabilities, num_bins=10)
    assert bins.count.tolist() == [2, 1, 2, 1]
    assert bins.mean_probability == pytest.approx([0.05, 0.3, 0.33, 1.0], abs=1e-12)
    assert bins.fraction_positive == pytest.approx([0.5, 0.0, 1.0, 1.0], abs=1e-12)
    # Gaps 0.45, 0.3, 0.67, 0 by counts 2, 1, 2, 1: (0.9 + 0.3 + 1.34 + 0) / 6 = 2.54 / 6
    error = expected_calibration_error(labels, probabilities, num_bins=10)
    assert error == pytest.approx(2.54 / 6, abs=1e-12)


def test_the_calibration_error_takes_fifteen_bins():
    # 0.06 <= 1/15 = 0.0667 < 0.07: bins of their own, gaps 0.06 and 0.93, mean 0.495.
    # In one bin the gap would be |1/2 − 0.065| = 0.435.
    labels, probabilities = np.array([0, 1]), np.array([0.06, 0.07])
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.495, abs=1e-12)
    coarse = expected_calibration_error(labels, probabilities, num_bins=1)
    assert coarse == pytest.approx(0.435, abs=1e-12)


@pytest.mark.parametrize("probabilities", [[], [1.2], [-0.1]])
def test_the_calibration_error_refuses_what_is_no_probability(probabilities):
    labels = np.ones(len(probabilities), dtype=bool)
    with pytest.raises(UserError, match=r"probabilities must lie in \[0, 1\]"):
        expected_calibration_error(labels, np.array(probabilities))


def test_the_calibration_error_refuses_no_bins():
    with pytest.raises(UserError, match="num_bins=0 must be at least 1"):
        expected_calibration_error(np.array([1]), np.array([0.5]), num_bins=0)


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
