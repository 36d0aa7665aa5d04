"""What a set of sampled completions says about a policy or a reward model. All functions are pure.

Arrays are problems × samples; every metric of a policy is returned per problem, so that the same
problems can be compared between runs (``paired_difference``). The metrics of a reward model's
probabilities (``auroc``, ``expected_calibration_error``) pool completions; their intervals are
still over problems (``estimate_auroc``, ``bootstrap_clusters``). Answers are in canonical form
(``Grader.answer``); an answer is None where a completion has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # it loads scipy.stats, which takes most of a second, when that is first used
from scipy.special import expit, logit

from reasonrl.util.errors import UserError

# Totals of a vote this close (relatively) are tied: equal weights summed in another order differ
# in the last bits. Counts differ by far more.
_TIE = 1e-9
SIGNIFICANCE = 0.05  # the level at which a paired difference counts as established
FEWEST_CLUSTERS = (
    10  # problems with right completions, and with wrong ones, for an AUROC's interval
)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """The probability that k of the n samples, drawn without replacement, hold a correct one.

    With c of n correct it is 1 − C(n − c, k) / C(n, k) (Chen et al. 2021, eq. 1), which is unbiased
    and, as a product of ratios, free of overflow. Takes bool (problems, n), returns float
    (problems,). Raises UserError unless 1 <= k <= n.
    """
    num_samples = correct.shape[1]
    _check_k(k, num_samples)
    # C(n−c, k) / C(n, k) = Π_{j<c} (n−k−j) / (n−j): the c correct ones all fall outside the k.
    j = np.arange(num_samples)
    factors = (num_samples - k - j) / (num_samples - j)  # 0 at j = n − k: so is the rest
    all_wrong = np.concatenate([[1.0], np.cumprod(factors)])
    return 1.0 - all_wrong[correct.sum(axis=1)]


def majority_vote(answers: Sequence[Sequence[str | None]], golds: Sequence[str]) -> np.ndarray:
    """maj@n: the score of the most frequent answer, per problem, as float (problems,).

    A tie is scored by its expectation under a uniform draw (1/3 where the gold answer is one of
    three leaders). None never votes; where nothing else was sampled the score is 0.
    Raises UserError unless there are as many golds as problems.
    """
    _check_same_problems(golds=golds, answers=answers)
    scores = [
        _vote_scores(row, gold, np.ones((1, len(row)))).mean()
        for row, gold in zip(answers, golds, strict=True)
    ]
    return np.array(scores, dtype=float)


def weighted_vote(
    answers: Sequence[Sequence[str | None]],
    golds: Sequence[str],
    weights: np.ndarray | Sequence[Sequence[float]],
) -> np.ndarray:
    """``majority_vote`` where a sample counts as much as its weight, as float (problems,).

    The answer with the largest total weight wins; weights may be a reward model's probabilities.
    Totals within 1e-9 of the largest, relatively, tie with it. Equal weights give
    ``majority_vote``; a sample of weight 0 never votes. Raises UserError unless there are as many
    golds as problems, as many weights as samples and no weight is negative or not finite.
    """
    _check_same_problems(golds=golds, answers=answers)
    _check_same_samples(weights=weights, answers=answers)
    scores = []
    for i, (row, gold) in enumerate(zip(answers, golds, strict=True)):
        row_weights = np.asarray(weights[i], dtype=float)[None, :]
        if not (np.isfinite(row_weights) & (row_weights >= 0)).all():
            raise UserError(
                f"weights[{i}] must be finite and not negative; got min={row_weights.min()}, "
                f"max={row_weights.max()}. Give probabilities, not logits."
            )
        scores.append(_vote_scores(row, gold, row_weights).mean())
    return np.array(scores, dtype=float)


def _vote_scores(row: Sequence[str | None], gold: str, weights: np.ndarray) -> np.ndarray:
    """The expected score of each electorate, a row of ``weights``: float (electorates, n)."""
    candidates = list({answer for answer in row if answer is not None} | {gold})
    ballots = np.array([[answer == c for c in candidates] for answer in row], dtype=float)
    votes = weights @ ballots.reshape(len(row), len(candidates))  # (electorates, candidates)
    most = votes.max(axis=1, keepdims=True)
    leaders = (votes >= most * (1 - _TIE)) & (most > 0)
    gold_leads = leaders[:, candidates.index(gold)]
    return gold_leads / np.maximum(leaders.sum(axis=1), 1)


def best_of_n(correct: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """rerank@n: whether the sample with the highest score is right, as float (problems,).

    A tie is scored by its expectation under a uniform draw, so a constant score gives the mean
    accuracy; an oracle gives pass@n. Takes bool (problems, n) and float (problems, n). Raises
    UserError unless both have this shape and every score is finite.
    """
    correct, scores = np.asarray(correct, dtype=float), np.asarray(scores, dtype=float)
    _check_same_samples(scores=scores, correct=correct)
    _check_finite(scores)
    best = scores == scores.max(axis=1, keepdims=True)
    return (correct * best).sum(axis=1) / best.sum(axis=1)


def unique_fraction(traces: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Diversity: distinct traces / samples, per problem, as float (problems,).

    With ``Strict.trace`` as traces it is the paper's measure. All samples without a calculation
    share one trace, the empty one. Every problem must have a sample.
    """
    return np.array([len(set(row)) / len(row) for row in traces], dtype=float)


def unique_correct(traces: Sequence[Sequence[Hashable]], correct: np.ndarray) -> np.ndarray:
    """The number of distinct traces among the correct samples, per problem, as int (problems,).

    Takes correct as bool (problems, n), aligned with traces. Raises UserError unless both have as
    many problems.
    """
    _check_same_problems(correct=correct, traces=traces)
    return np.array(
        [
            len({trace for trace, right in zip(row, flags, strict=True) if right})
            for row, flags in zip(traces, correct, strict=True)
        ],
        dtype=int,
    )


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The probability that a right completion scores above a wrong one, ties counting ½.

    It is the area under the ROC curve, computed by ranks as the Mann–Whitney statistic U / (n₁ n₀).
    Takes bool (completions,) and float (completions,). Raises UserError unless both are of one
    length, the scores finite, the labels 0 or 1 and of both kinds.
    """
    labels, scores = _check_labelled(labels, scores)
    positives = int(labels.sum())
    negatives = labels.size - positives
    _check_both_classes(positives, negatives)
    u = scipy.stats.rankdata(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """The bins that hold a completion, in rising order, as arrays with an entry for each bin."""

    mean_probability: np.ndarray  # of the bin's completions
    fraction_positive: np.ndarray  # the share of the bin's completions that are right
    count: np.ndarray  # the number of the bin's completions


def reliability_bins(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> ReliabilityBins:
    """Completions grouped by probability into M bins of equal width, (m−1)/M < p <= m/M.

    A probability of 0 falls into the first bin. The bins are those of Guo et al. 2017, section 2,
    with the probability of being right in place of the confidence in the predicted class. Takes
    bool (completions,) and float (completions,). Raises UserError unless both are of one length and
    not empty, the labels 0 or 1, the probabilities in [0, 1] and num_bins >= 1.
    """
    labels, probabilities = _check_labelled(labels, probabilities)
    if num_bins < 1:
        raise UserError(
            f"num_bins={num_bins} must be at least 1; got {labels.size} labels. "
            f"Leave it at its default, 15."
        )
    if labels.size == 0 or probabilities.min() < 0 or probabilities.max() > 1:
        raise UserError(
            f"probabilities must lie in [0, 1] and be at least one; "
            f"got len(probabilities)={labels.size}. Give probabilities, not logits."
        )
    bins = np.digitize(probabilities, np.arange(1, num_bins) / num_bins, right=True)
    _, place, count = np.unique(bins, return_inverse=True, return_counts=True)
    return ReliabilityBins(
        mean_probability=np.bincount(place, weights=probabilities) / count,
        fraction_positive=np.bincount(place, weights=labels) / count,
        count=count,
    )


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> float:
    """Σ count/N · |fraction_positive − mean_probability| over ``reliability_bins``.

    This is eq. 3 of Guo et al. 2017. It is biased upwards where bins hold few completions. Raises
    UserError where ``reliability_bins`` does.
    """
    bins = reliability_bins(labels, probabilities, num_bins)
    gaps = np.abs(bins.fraction_positive - bins.mean_probability)
    return float(np.average(gaps, weights=bins.count))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a statistic of n problems with its confidence interval, all as fractions."""

    value: float
    low: float  # the interval's lower end
    high: float  # the interval's upper end
    n: int  # the number of problems
    # Of a paired difference: how probable one as large is by chance; older runs don't say.
    p_value: float | None = None
    seeds: int = 1  # the number of seeds whose runs were averaged

    def __str__(self) -> str:
        """The estimate in percent, as ``47.1% [44.2, 50.0]``."""
        return f"{100 * self.value:z.1f}% [{100 * self.low:z.1f}, {100 * self.high:z.1f}]"

    def is_established(self) -> bool:
        """Whether a difference is established at the 5% level, by the test of its pairs.

        Where an older run has no p-value, its interval has to exclude 0.
        """
        if self.p_value is None:
            return self.n > 1 and (self.low > 0 or self.high < 0)
        return self.p_value < SIGNIFICANCE


def estimate_mean(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = 10_000, confidence: float = 0.95
) -> Estimate:
    """The mean of per-problem values with its confidence interval over problems.

    Where every value is 0 or 1 the interval is exact (Clopper and Pearson 1934): it covers the
    truth at least as often as ``confidence`` says, rare events included. For other values it is the
    percentile bootstrap's, which is deterministic in ``seed``, and has width 0 where they are all
    equal. Raises UserError where values is empty, not one-dimensional or not finite.
    """
    values = _check_values(values)
    if ((values == 0) | (values == 1)).all():
        test = scipy.stats.binomtest(int(values.sum()), values.size)
        interval = test.proportion_ci(confidence_level=confidence, method="exact")
        low, high = float(interval.low), float(interval.high)
    else:
        low, high = _bootstrap_interval(values, seed, num_resamples, confidence)
    return Estimate(float(values.mean()), low, high, values.size)


def estimate_share(
    rows: Sequence[np.ndarray],
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """The share of pooled completions of which something is so, with its interval over problems.

    Every completion counts the same, however many its problem has. The interval is the percentile
    bootstrap's, which draws whole problems (``seed``); where it is so of all completions or of
    none, it is as exact as that of so many problems. Rows are bool, one array per problem and none
    of them empty. Raises UserError where there are none.
    """
    hits, sizes = (np.array([f(row) for row in rows], dtype=float) for f in (np.sum, np.size))
    problems = _check_values(hits / sizes)
    value = float(hits.sum() / sizes.sum())
    if value in (0.0, 1.0):
        return estimate_mean(problems, confidence=confidence)
    drawn = np.random.default_rng(seed).integers(len(hits), size=(num_resamples, len(hits)))
    shares = hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), len(hits))


def _bootstrap_interval(
    values: np.ndarray, seed: int, num_resamples: int, confidence: float
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of values (n,)."""
    if np.ptp(values) == 0:  # scipy would warn of a degenerate distribution
        return float(values[0]), float(values[0])
    interval = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, 2**20 // values.size),  # 8 MB of indices at a time stay in the cache
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """The gain of b on a over the same problems, with its interval and its p-value.

    Pairing removes the spread between easy and hard problems, so it separates runs that two
    unpaired intervals do not. The interval is the percentile bootstrap's over problems. The p-value
    is that of the sign-flip test: by chance each problem's difference could as well have the other
    sign. It is exact, two-sided, and McNemar's where every difference is −1, 0 or 1: four problems
    gained and none lost give 0.125. For other differences flips are drawn (``seed``). Raises
    UserError unless a and b are of one length, not empty and finite.
    """
    _check_same_problems(b=b, a=a)
    difference = _check_values(np.asarray(b, dtype=float) - np.asarray(a, dtype=float))
    low, high = _bootstrap_interval(difference, seed, num_resamples, confidence)
    p_value = _sign_flip_p_value(difference, seed, num_resamples)
    return Estimate(float(difference.mean()), low, high, difference.size, p_value)


def _sign_flip_p_value(difference: np.ndarray, seed: int, num_resamples: int) -> float:
    changed = difference[difference != 0]
    if changed.size == 0:
        return 1.0
    if np.ptp(np.abs(changed)) == 0:
        return float(scipy.stats.binomtest(int((changed > 0).sum()), changed.size).pvalue)
    return float(
        scipy.stats.permutation_test(
            (changed, np.zeros_like(changed)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=num_resamples,
            batch=max(1, 2**20 // changed.size),
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def mean_over_seeds(values: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """The mean of values (seeds, problems), with an interval over seeds and problems.

    Seeds and problems are two crossed random effects: other seeds would have made other weights,
    and other problems might have been asked. The variance of the mean is at most

        s_S² / S + s_P² / n        s_S, s_P: standard deviations of S seeds' and n problems' means

    and Student's t of Satterthwaite's (1946) degrees of freedom gives the interval and, for
    differences, the p-value of a mean of 0. Raises UserError where there are fewer than two seeds
    or problems, or a value isn't finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise UserError(
            f"values must hold finite numbers of two or more seeds and problems; got "
            f"values.shape={values.shape}. Run more seeds: seed=0,1,2."
        )
    num_seeds, num_problems = values.shape
    parts = np.array(
        [
            values.mean(axis=1).var(ddof=1) / num_seeds,
            values.mean(axis=0).var(ddof=1) / num_problems,
        ]
    )
    mean, variance = float(values.mean()), float(parts.sum())
    if variance == 0:
        return Estimate(mean, mean, mean, num_problems, float(mean == 0), num_seeds)
    freedom = variance**2 / float((parts**2 / [num_seeds - 1, num_problems - 1]).sum())
    error = math.sqrt(variance)
    width = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = float(2 * scipy.stats.t.sf(abs(mean) / error, freedom))
    low, high = mean - width, mean + width
    if values.min() >= 0 and values.max() <= 1:  # so is the truth
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(mean, low, high, num_problems, p_value, num_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected for their number (Holm 1979), in the same order.

    Each is the least level at which its comparison counts when the chance that any true null is
    rejected is held to that level.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in corrected]


def estimate_auroc(
    labels: Sequence[np.ndarray], scores: Sequence[np.ndarray], *, confidence: float = 0.95
) -> Estimate:
    """``auroc`` of pooled completions with its confidence interval over problems.

    The variance is DeLong's for clustered data (Obuchowski 1997, Biometrics 53:567), since
    completions of one problem are alike. The interval is Student's t on the logit scale, of as many
    degrees of freedom as the rarer kind of completion has problems, less one. Where fewer than
    ``FEWEST_CLUSTERS`` problems have a right completion, or a wrong one, nothing is known about the
    variance and the interval is [0, 1]. Of a perfect separation of p problems it ends where p in a
    row would be improbable. Labels and scores are given as one array per problem, of any lengths.
    Raises UserError where the lengths differ, or all labels are of one kind.
    """
    _check_same_samples(scores=scores, labels=labels)
    right = np.concatenate(labels).astype(bool)
    pooled = np.concatenate(scores)
    area = auroc(right, pooled)
    problem = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    kinds = (right, ~right)
    clusters = [np.unique(problem[kind]).size for kind in kinds]
    fewest, tail = min(clusters), (1 - confidence) / 2
    if fewest < FEWEST_CLUSTERS:
        return Estimate(area, 0.0, 1.0, len(labels))
    if area in (0.0, 1.0):
        reach = tail ** (1 / fewest)
        low, high = (reach, 1.0) if area else (0.0, 1 - reach)
        return Estimate(area, low, high, len(labels))

    ranks = scipy.stats.rankdata(pooled)
    sums = []  # by kind and problem: how much more often its completions rank rightly than all do
    for kind, sign in zip(kinds, (1, -1), strict=True):
        above = (ranks[kind] - scipy.stats.rankdata(pooled[kind])) / (~kind).sum()
        share = above if sign == 1 else 1 - above
        sums.append(np.bincount(problem[kind], weights=share - area, minlength=len(labels)))
    (first, second), (m, n) = sums, (kind.sum() for kind in kinds)
    variance = (
        clusters[0] / (clusters[0] - 1) * float(first @ first) / m**2
        + clusters[1] / (clusters[1] - 1) * float(second @ second) / n**2
        + 2 * len(labels) / (len(labels) - 1) * float(first @ second) / (m * n)
    )
    width = float(scipy.stats.t.ppf(1 - tail, fewest - 1)) * math.sqrt(max(variance, 0.0))
    ends = logit(area) + np.array([-1, 1]) * width / (area * (1 - area))
    low, high = map(float, expit(ends))
    return Estimate(area, low, high, len(labels))


def bootstrap_clusters(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    labels: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    *,
    seed: int = 0,
    num_resamples: int = 1_000,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic of pooled completions with its percentile bootstrap interval over problems.

    Completions of one problem are alike, so whole problems are drawn with replacement, and
    ``statistic(labels, scores)`` (``auroc``, ``expected_calibration_error``) is taken of all
    completions of the drawn ones. A draw with right or wrong completions only is replaced by
    another. Labels and scores are given as one array per problem, of any lengths.
    The calibration error of a resample is biased upwards once more, so its interval may lie above
    its value. Raises UserError where the lengths differ, or all labels are of one kind.
    """
    _check_same_samples(scores=scores, labels=labels)
    positives = np.array([np.sum(each) for each in labels])
    sizes = np.array([len(each) for each in labels])
    _check_both_classes(int(positives.sum()), int((sizes - positives).sum()))

    def pooled(problems: np.ndarray) -> float:
        both = (np.concatenate([rows[i] for i in problems]) for rows in (labels, scores))
        return float(statistic(*both))

    value = pooled(np.arange(len(labels)))
    rng = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < num_resamples:
        drawn = rng.integers(len(labels), size=len(labels))
        if 0 < positives[drawn].sum() < sizes[drawn].sum():
            values.append(pooled(drawn))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), len(labels))


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise UserError(
            f"k={k} must be between 1 and the number of samples per problem; "
            f"got num_samples_per_prompt={num_samples}. Sample more or lower k."
        )


def _check_values(values: np.ndarray) -> np.ndarray:
    """The values as float (problems,)."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise UserError(
            f"values must hold one finite number per problem; got values.shape={values.shape}. "
            f"Average over samples first, and score an unparsed answer 0."
        )
    return values


def _check_same_problems(**arrays: Sequence | np.ndarray) -> None:
    (name, array), (other_name, other) = arrays.items()
    if len(array) != len(other):
        raise UserError(
            f"len({name})={len(array)} must be the same number of problems throughout; "
            f"got len({other_name})={len(other)}. Take both from one list of problems."
        )


def _check_same_samples(**arrays: Sequence | np.ndarray) -> None:
    _check_same_problems(**arrays)
    (name, array), (other_name, other) = arrays.items()
    for i, (row, other_row) in enumerate(zip(array, other, strict=True)):
        if len(row) != len(other_row):
            raise UserError(
                f"len({name}[{i}])={len(row)} must be the same number of samples throughout; "
                f"got len({other_name}[{i}])={len(other_row)}. Take both from one set of samples."
            )


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise UserError(
            f"scores must be finite; got {np.sum(~np.isfinite(scores))} of {scores.size} that are "
            f"not. Score an empty completion 0."
        )


def _check_labelled(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of shape (completions,), the labels as bool."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(
            f"labels.shape={labels.shape} must be one label per score; "
            f"got scores.shape={scores.shape}. Pool the completions of all problems first."
        )
    _check_finite(scores)
    if not ((labels == 0) | (labels == 1)).all():
        raise UserError(
            f"labels must be 0 or 1; got values from {labels.min()} to {labels.max()}. "
            f"Label a completion by whether its answer is right."
        )
    return labels.astype(bool), scores


def _check_both_classes(positives: int, negatives: int) -> None:
    if not (positives and negatives):
        raise UserError(
            f"labels must hold right and wrong completions; got positives={positives}, "
            f"negatives={negatives}. Add problems, or sample more per problem."
        )
