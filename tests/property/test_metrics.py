"""What holds for any sample of answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrl.grading.estimates import estimate_mean, paired_difference
from reasonrl.grading.metrics import (
    auroc,
    best_of_n,
    expected_calibration_error,
    majority_vote,
    pass_at_k,
    reliability_bins,
    unique_fraction,
    weighted_vote,
)

deterministic = settings(derandomize=True, deadline=None, max_examples=50)

ROWS = st.lists(st.sampled_from(["18", "7", "3", None]), min_size=1, max_size=7)
CORRECT = st.lists(st.booleans(), min_size=1, max_size=96).map(lambda row: np.array([row]))
# Few distinct scores, so that many tie.
SCORED = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=32).map(
    lambda pairs: (np.array([right for right, _ in pairs]), np.array([s / 5 for _, s in pairs]))
)
BOTH_CLASSES = SCORED.filter(lambda pair: pair[0].any() and not pair[0].all())


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
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_unique_fraction_lies_between_one_sample_and_all(traces):
    fractions = unique_fraction(traces)
    assert (fractions <= 1).all()
    assert (fractions >= [1 / len(row) for row in traces]).all()


@deterministic
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_a_swap_mirrors_the_difference(pairs):
    a, b = np.array(pairs).T
    estimate = estimate_mean(a, num_resamples=200)
    assert 0 <= estimate.low <= estimate.value + 1e-12 <= estimate.high + 2e-12 <= 1 + 3e-12
    forth, back = (paired_difference(*pair, num_resamples=200) for pair in ((a, b), (b, a)))
    mirrored = [-back.value, -back.high, -back.low]
    assert [forth.value, forth.low, forth.high] == pytest.approx(mirrored, abs=1e-9)
    assert forth.p_value == back.p_value


@deterministic
@given(CORRECT, st.floats(-10, 10))
def test_best_of_n_of_an_oracle_a_constant_and_a_reversed_oracle(correct, constant):
    mean = correct.mean()
    oracle, reverse = best_of_n(correct, 1.0 * correct), best_of_n(correct, -1.0 * correct)
    assert oracle == pytest.approx(pass_at_k(correct, correct.shape[1]), abs=1e-12)
    assert best_of_n(correct, np.full(correct.shape, constant)) == pytest.approx([mean], abs=1e-12)
    assert reverse.tolist() == [float(correct.all())]
    if 0 < mean < 1:
        assert reverse[0] < mean < oracle[0]


@deterministic
@given(SCORED, st.randoms(use_true_random=False))
def test_best_of_n_ignores_the_scale_of_scores_and_the_order_of_samples(scored, random):
    correct, scores = scored
    best = best_of_n(correct[None], scores[None])
    assert best_of_n(correct[None], np.exp(3 * scores[None]) - 7) == pytest.approx(best, abs=1e-12)
    order = random.sample(range(len(scores)), len(scores))
    shuffled = best_of_n(correct[None, order], scores[None, order])
    assert shuffled == pytest.approx(best, abs=1e-12)


@deterministic
@given(ROWS, st.floats(1e-6, 1e6))
def test_equal_weights_give_the_majority_vote(row, weight):
    weighted = weighted_vote([row], ["18"], [[weight] * len(row)])
    assert weighted == pytest.approx(majority_vote([row], ["18"]), abs=1e-12)


@deterministic
@given(st.lists(st.tuples(st.sampled_from(["18", "7", None]), st.integers(0, 4)), min_size=1))
def test_a_weight_counts_as_so_many_samples(pairs):
    repeated = [answer for answer, count in pairs for _ in range(count)]
    row, weights = zip(*pairs, strict=True)
    tenths = [0.1 * weight for weight in weights]
    weighted = weighted_vote([row], ["18"], [tenths])
    assert weighted == pytest.approx(majority_vote([repeated], ["18"]), abs=1e-12)


@deterministic
@given(BOTH_CLASSES)
def test_auroc_is_the_share_of_pairs_ranked_rightly(scored):
    labels, scores = scored
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    area = auroc(labels, scores)
    assert area == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(~labels, scores) == pytest.approx(1 - area, abs=1e-12)


@deterministic
@given(BOTH_CLASSES, st.floats(0, 1))
def test_auroc_of_an_oracle_a_constant_and_a_reversed_oracle(scored, constant):
    labels, _ = scored
    assert auroc(labels, 1.0 * labels) == 1.0
    assert auroc(labels, np.full(labels.shape, constant)) == 0.5
    assert auroc(labels, -1.0 * labels) == 0.0


@deterministic
@given(SCORED, st.integers(1, 20))
def test_the_calibration_error_lies_between_that_of_one_bin_and_the_mean_gap(scored, num_bins):
    labels, probabilities = scored
    error = expected_calibration_error(labels, probabilities, num_bins)
    assert abs(labels.mean() - probabilities.mean()) - 1e-12 <= error
    assert error <= np.abs(labels - probabilities).mean() + 1e-12
    bins = reliability_bins(labels, probabilities, num_bins)
    assert bins.count.sum() == labels.size
    assert bins.count @ bins.fraction_positive == pytest.approx(labels.sum(), abs=1e-9)
    assert bins.count @ bins.mean_probability == pytest.approx(probabilities.sum(), abs=1e-9)


@deterministic
@given(SCORED)
def test_the_calibration_error_of_an_oracle_and_a_reversed_oracle(scored):
    labels, _ = scored
    assert expected_calibration_error(labels, 1.0 * labels) == 0.0
    assert expected_calibration_error(labels, 1.0 - labels) == 1.0
