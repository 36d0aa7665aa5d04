"""Intervals, paired differences and their p-values against hand-computed numbers."""

import time
import warnings

import numpy as np
import pytest
from scipy import stats

from reasonrl.grading.estimates import (
    Estimate,
    bootstrap_clusters,
    estimate_auroc,
    estimate_mean,
    estimate_share,
    holm,
    mean_over_seeds,
    paired_difference,
)
from reasonrl.grading.metrics import auroc
from reasonrl.util.errors import UserError


def test_the_interval_at_the_size_of_gsm8k():
    # 607 / 1319 = 0.46; half-width 1.96 · √(0.46 · 0.54 / 1319) = 0.0269: 2.7 points
    estimate = estimate_mean(np.arange(1319) < 607)
    assert estimate.value == pytest.approx(0.4602, abs=1e-4)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.0269, abs=1e-3)
    assert estimate.low == pytest.approx(0.4602 - 0.0269, abs=2e-3)
    assert estimate.n == 1319


def test_the_interval_of_shares_follows_confidence_and_not_the_seed():
    values = np.where(np.arange(400) < 200, 0.25, 0.75)
    # Half-widths z · √(0.0625 / 400) = z · 0.0125: 0.0206 at 90% (z = 1.645), 0.0322 at 99% (2.576)
    for confidence, half_width in [(0.90, 0.0206), (0.99, 0.0322)]:
        for seed in (0, 1):
            estimate = estimate_mean(values, seed=seed, confidence=confidence)
            assert (estimate.high - estimate.low) / 2 == pytest.approx(half_width, abs=1.5e-3)
    assert estimate_mean(values, seed=3) == estimate_mean(values, seed=3)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Clopper and Pearson: quantiles of Beta(k, n − k + 1) and Beta(k + 1, n − k)
        (0, 64, 0.0, 0.0560),  # 1 − 0.025^(1/64)
        (64, 64, 0.9440, 1.0),
        (3, 300, 0.0021, 0.0289),
        (1, 1, 0.025, 1.0),
        (5, 10, 0.1871, 0.8129),
    ],
)
def test_the_interval_of_rights_and_wrongs_is_exact(right, n, low, high):
    estimate = estimate_mean(np.arange(n) < right)
    assert estimate.value == pytest.approx(right / n, abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
    assert estimate.n == n


def test_the_interval_of_rights_and_wrongs_follows_confidence():
    estimate = estimate_mean(np.arange(10) < 5, confidence=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((0.2224, 0.7776), abs=1e-4)


def test_equal_shares_give_an_interval_of_width_0_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = estimate_mean(np.array([0.3] * 7))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("values", [[], [[1.0, 0.0]], [1.0, float("nan")], [float("inf"), 0.0]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(UserError, match="values must hold one finite number per problem"):
        estimate_mean(np.array(values))


def test_pairing_establishes_what_two_intervals_do_not():
    # Both runs solve the first 600 of 1,319; b also solves 53 more: 53 / 1319 = 4.02 points.
    # Paired: 1.96 · √(0.0402 · 0.9598 / 1319) = 0.0106. Unpaired: 0.0269 each, so they overlap.
    a, b = np.arange(1319) < 600, np.arange(1319) < 653
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.0402, abs=1e-4)
    assert (difference.high - difference.low) / 2 == pytest.approx(0.0106, abs=1e-3)
    assert difference.is_established()
    assert estimate_mean(a).high > estimate_mean(b).low
    assert paired_difference(b, a).value == pytest.approx(-0.0402, abs=1e-4)
    assert paired_difference(b, a).is_established()


def test_a_difference_of_nothing_is_not_established():
    # 20 problems won and 20 lost: mean 0.
    a, b = np.arange(100) < 60, (np.arange(100) >= 20) & (np.arange(100) < 80)
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(0.0, abs=1e-12)
    assert not difference.is_established()
    assert not paired_difference(a, a).is_established()
    assert not paired_difference(np.array([0.0]), np.array([1.0])).is_established()


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [  # McNemar's exact test: twice the tail of fair coins
        (4, 0, 2 / 16),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (7, 1, 18 / 256),
        (9, 1, 22 / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_problems_gained_and_lost_are_tested_exactly(gained, lost, p_value):
    a, b = np.zeros(500), np.zeros(500)
    b[:gained], a[-lost or 500 :] = 1, 1
    difference = paired_difference(a, b)
    assert difference.p_value == pytest.approx(p_value, abs=1e-12)
    assert difference.is_established() == (p_value < 0.05)


def test_differences_of_shares_are_tested_by_flipping_their_signs():
    # All eight sums of ±0.1 ± 0.2 ± 0.3: 0.6 and −0.6 are as far from 0 as the one that was found.
    b = np.array([0.1, 0.2, 0.3, 0.0])
    assert paired_difference(np.zeros(4), b).p_value == pytest.approx(2 / 8, abs=1e-12)
    # 0.1 − 0.2 + 0.3 = 0.2: all but ±0.0 are as far.
    b = np.array([0.1, -0.2, 0.3])
    assert paired_difference(np.zeros(3), b).p_value == pytest.approx(6 / 8, abs=1e-12)
    # 40 times 0.25 and 0.5, never a loss: 2^-39 exactly, at most 2 / 10,001 by drawing flips.
    a, b = np.zeros(40), np.where(np.arange(40) < 20, 0.25, 0.5)
    assert paired_difference(a, b).p_value < 1e-3


def test_the_interval_over_seeds_and_problems_by_hand():
    # Seeds' means 0.25, 0.5, 0.75: s² = 0.0625, / 3 = 0.0208333. Problems' means 1, 2/3, 1/3, 0:
    # s² = 0.185185, / 4 = 0.0462963. Error √0.0671296 = 0.259094; freedom 0.00450639 /
    # (0.000434028 / 2 + 0.00214335 / 3) = 4.83849; t = 2.59669; p = 2 P(t > 0.5 / 0.259094).
    values = -np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])  # differences
    estimate = mean_over_seeds(values)
    assert (estimate.value, estimate.n, estimate.seeds) == (-0.5, 4, 3)
    assert estimate.high + 0.5 == pytest.approx(2.59669 * 0.259094, abs=1e-4)
    assert -0.5 - estimate.low == pytest.approx(2.59669 * 0.259094, abs=1e-4)
    assert estimate.p_value == pytest.approx(0.1131, abs=1e-3)
    # 2.0388 at 90%
    assert mean_over_seeds(values, confidence=0.9).high + 0.5 == pytest.approx(0.5257, abs=2e-3)


def test_the_interval_over_seeds_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):  # three seeds whose accuracies scatter by 4 points around 50%
        skill = rng.normal(0.0, 1.0, 200)[None, :] + rng.normal(0.0, 0.2, 3)[:, None]
        values = rng.random((3, 200)) < 1 / (1 + np.exp(-skill))
        estimate = mean_over_seeds(values)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.93 <= covered / 400 <= 0.995


def test_seeds_that_all_say_the_same_leave_no_doubt():
    assert mean_over_seeds(np.ones((2, 3))) == Estimate(1.0, 1.0, 1.0, 3, 0.0, 2)
    assert mean_over_seeds(np.zeros((2, 3))).p_value == 1.0
    for values in (np.ones((1, 3)), np.ones((3, 1)), np.ones(3), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match="two or more seeds and problems"):
            mean_over_seeds(values)


def test_the_interval_over_seeds_of_rights_and_wrongs_ends_at_0_and_1():
    low = mean_over_seeds(np.array([[0, 0, 1], [0, 0, 0]]))
    assert low.low == 0.0 < low.high < 1.0
    high = mean_over_seeds(np.array([[1, 1, 0], [1, 1, 1]]))
    assert 0.0 < high.low < high.high == 1.0


def test_p_values_are_corrected_for_their_number_by_holm():
    # 0.01 * 3, 0.02 * 2, and 0.03 * 1, which is no less than the one before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_difference_of_an_older_run_goes_by_its_interval():
    assert Estimate(0.1, 0.01, 0.2, n=50).is_established()
    assert not Estimate(0.1, -0.01, 0.2, n=50).is_established()
    assert not Estimate(1.0, 1.0, 1.0, n=1).is_established()


def test_a_pair_of_unequal_lengths_is_refused():
    with pytest.raises(UserError, match=r"len\(b\)=3 must .* got len\(a\)=2"):
        paired_difference(np.zeros(2), np.zeros(3))


def alone(labels, scores):
    """Each completion as a problem of its own."""
    return [np.array([y]) for y in labels], [np.array([s]) for s in scores]


def test_an_auroc_s_interval_is_delong_s_on_the_logit_scale():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3 == 0  # 14 right ones
    scores = np.round(rng.normal(size=40) + labels, 1)  # with ties
    # DeLong et al. 1988: the variances of how each right one ranks, and each wrong one.
    wins = (scores[labels][:, None] > scores[~labels]) + (
        scores[labels][:, None] == scores[~labels]
    ) / 2
    area = wins.mean()
    variance = wins.mean(axis=1).var(ddof=1) / 14 + wins.mean(axis=0).var(ddof=1) / 26
    # Alone no problem has both, so the covariance of their centred sums is 0.
    width = stats.t.ppf(0.975, 13) * np.sqrt(variance) / (area * (1 - area))
    estimate = estimate_auroc(*alone(labels, scores))
    assert (estimate.value, estimate.n) == (pytest.approx(area), 40)
    logits = np.log([estimate.low / (1 - estimate.low), estimate.high / (1 - estimate.high)])
    centre = np.log(area / (1 - area))
    np.testing.assert_allclose(logits, [centre - width, centre + width], rtol=1e-9)


def test_an_auroc_s_interval_is_over_problems():
    rng = np.random.default_rng(1)
    labels = np.arange(30) % 2 == 0
    scores = rng.normal(size=30) + labels
    once = estimate_auroc(*alone(labels, scores))
    alike = estimate_auroc([np.full(8, y) for y in labels], [np.full(8, s) for s in scores])
    assert (alike.low, alike.high) == pytest.approx((once.low, once.high), abs=1e-12)
    apart = estimate_auroc(*alone(np.repeat(labels, 8), np.repeat(scores, 8)))
    assert apart.high - apart.low < 0.5 * (once.high - once.low)
    # Right and wrong ones of a problem that rank alike leave less to chance.
    both = [np.array([True, False])] * 30
    hard = rng.normal(size=30)
    paired = estimate_auroc(both, [np.array([h + 0.2, h]) for h in hard])
    shuffled = estimate_auroc(both, list(np.stack([hard + 0.2, hard[::-1]], axis=1)))
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


@pytest.mark.parametrize("positives", [3, 9])
def test_an_auroc_of_few_problems_of_a_kind_has_no_interval(positives):
    """The bootstrap's covered the truth in 74% of such draws, not in 95%."""
    labels = np.arange(256) < positives
    estimate = estimate_auroc(*alone(labels, np.random.default_rng(0).normal(size=256)))
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    # Of one problem there are never ten, whatever its completions.
    estimate = estimate_auroc([np.arange(64) < 32], [np.arange(64.0) % 7])
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_an_auroc_that_separates_perfectly_is_not_certain():
    labels = np.arange(24) < 10
    best, worst = (estimate_auroc(*alone(labels, s * labels)) for s in (1.0, -1.0))
    assert (best.value, best.high, worst.value, worst.low) == (1.0, 1.0, 0.0, 0.0)
    # Ten in a row at 69.2% have a probability of 2.5%.
    assert (best.low, worst.high) == (
        pytest.approx(0.692, abs=5e-4),
        pytest.approx(0.308, abs=5e-4),
    )


def test_a_share_counts_every_completion_and_draws_problems():
    rows = [np.array([True, False]), np.array([True, False, False]), np.array([False])]
    assert estimate_share(rows).value == pytest.approx(2 / 6)
    # 100 problems of 16 equal completions are 100 draws: ± 1.96 · √(0.25 / 100).
    alike = estimate_share([np.full(16, i % 2 == 0) for i in range(100)])
    assert (alike.value, alike.n) == (0.5, 100)
    assert (alike.low, alike.high) == pytest.approx((0.402, 0.598), abs=0.02)
    # None of 64 problems: exact, however many completions they have.
    none = estimate_share([np.zeros(4, dtype=bool)] * 64)
    assert (none.low, none.high) == (0.0, pytest.approx(0.056, abs=5e-4))


def mean_label(labels, _):
    return labels.mean()


def test_the_bootstrap_over_problems_sees_that_their_completions_are_alike():
    # 100 problems × 16 equal completions, half of the problems right: 100 independent draws, so the
    # half-width is 1.96 · √(0.25 / 100) = 0.098. Over 1,600 completions it would be 0.0245.
    labels = [np.full(16, i % 2 == 0) for i in range(100)]
    scores = [np.zeros(16)] * 100
    estimate = bootstrap_clusters(mean_label, labels, scores)
    assert (estimate.value, estimate.n) == (0.5, 100)
    assert estimate.low == pytest.approx(0.5 - 0.098, abs=0.02)
    assert estimate.high == pytest.approx(0.5 + 0.098, abs=0.02)
    # 1.645 · 0.05 = 0.082 at 90%
    narrow = bootstrap_clusters(mean_label, labels, scores, confidence=0.9)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(0.082, abs=0.012)
    assert bootstrap_clusters(mean_label, labels, scores) == estimate
    few = [bootstrap_clusters(mean_label, labels, scores, seed=s, num_resamples=9) for s in (0, 1)]
    assert few[0] != few[1]


def test_the_bootstrap_over_problems_draws_labels_and_scores_together():
    # Every draw of these ragged problems ranks right above wrong.
    labels = [np.array([1, 0], dtype=bool), np.array([1], dtype=bool), np.array([0, 0], dtype=bool)]
    scores = [np.array([0.9, 0.1]), np.array([0.8]), np.array([0.2, 0.3])]
    estimate = bootstrap_clusters(auroc, labels, scores, num_resamples=50)
    assert estimate == Estimate(1.0, 1.0, 1.0, n=3)


def test_draws_of_a_single_class_are_left_out():
    # Of the four draws of two problems only the two that hold both can be judged: area 0.
    labels, scores = [np.array([1]), np.array([0])], [np.array([0.2]), np.array([0.7])]
    assert bootstrap_clusters(auroc, labels, scores) == Estimate(0.0, 0.0, 0.0, n=2)


def test_the_bootstrap_over_problems_refuses_a_single_class_and_misfits():
    with pytest.raises(UserError, match="got positives=3, negatives=0"):
        bootstrap_clusters(auroc, [np.ones(2), np.ones(1)], [np.zeros(2), np.zeros(1)])
    with pytest.raises(UserError, match=r"len\(scores\[0\]\)=1 must .* len\(labels\[0\]\)=2"):
        bootstrap_clusters(auroc, [np.ones(2), np.zeros(1)], [np.zeros(1), np.zeros(2)])


def test_estimates_print_in_percent():
    assert str(Estimate(0.471, 0.442, 0.5, n=1319)) == "47.1% [44.2, 50.0]"
    assert str(Estimate(-1e-9, -0.03, 0.021, n=9)) == "0.0% [-3.0, 2.1]"


def test_the_bootstrap_is_fast():
    values, seconds = np.arange(1319) < 607, []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.process_time()
        estimate_mean(values)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


def test_the_bootstrap_over_problems_is_fast():
    rng = np.random.default_rng(0)
    labels, scores = list(rng.random((250, 32)) < 0.5), list(rng.random((250, 32)))
    start = time.process_time()
    bootstrap_clusters(auroc, labels, scores)
    assert time.process_time() - start < 5
