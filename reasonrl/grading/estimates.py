"""How far metrics can be trusted: means over problems and seeds with intervals, and differences.

Intervals are over problems, also those of metrics that pool completions (``estimate_auroc``,
``bootstrap_clusters``), and over seeds too where there are several (``mean_over_seeds``). All
functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # it loads scipy.stats, which takes most of a second, when that is first used
from scipy.special import expit, logit

from reasonrl.grading.metrics import (
    auroc,
    check_both_classes,
    check_same_problems,
    check_same_samples,
)
from reasonrl.util.errors import UserError

SIGNIFICANCE = 0.05  # the level at which a paired difference counts as established
FEWEST_CLUSTERS = 10  # problems with right completions, and with wrong ones, for AUROC's interval


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
    check_same_problems(b=b, a=a)
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
    check_same_samples(scores=scores, labels=labels)
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
    check_same_samples(scores=scores, labels=labels)
    positives = np.array([np.sum(each) for each in labels])
    sizes = np.array([len(each) for each in labels])
    check_both_classes(int(positives.sum()), int((sizes - positives).sum()))

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


def _check_values(values: np.ndarray) -> np.ndarray:
    """The values as float (problems,)."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise UserError(
            f"values must hold one finite number per problem; got values.shape={values.shape}. "
            f"Average over samples first, and score an unparsed answer 0."
        )
    return values
