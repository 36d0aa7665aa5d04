"""What sampled completions say about a policy or a reward model. All functions are pure.

Arrays are problems × samples; every metric of a policy is returned per problem, so that the same
problems can be compared between runs (``grading.estimates``). The metrics of a reward model's
probabilities (``auroc``, ``expected_calibration_error``) pool completions. Answers are in canonical
form (``Grader.answer``); an answer is None where a completion has none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # it loads scipy.stats, which takes most of a second, when that is first used

from reasonrl.util.errors import UserError

# Totals of a vote this close (relatively) are tied: equal weights summed in another order differ
# in the last bits. Counts differ by far more.
_TIE = 1e-9


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


def reported_k(num_samples: int) -> list[int]:
    """Those k whose pass@k gets an interval: the powers of two below K, and K."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples]


def majority_vote(answers: Sequence[Sequence[str | None]], golds: Sequence[str]) -> np.ndarray:
    """maj@n: the score of the most frequent answer, per problem, as float (problems,).

    A tie is scored by its expectation under a uniform draw (1/3 where the gold answer is one of
    three leaders). None never votes; where nothing else was sampled the score is 0.
    Raises UserError unless there are as many golds as problems.
    """
    check_same_problems(golds=golds, answers=answers)
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
    check_same_problems(golds=golds, answers=answers)
    check_same_samples(weights=weights, answers=answers)
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
    check_same_samples(scores=scores, correct=correct)
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
    check_same_problems(correct=correct, traces=traces)
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
    check_both_classes(positives, negatives)
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


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise UserError(
            f"k={k} must be between 1 and the number of samples per problem; "
            f"got num_samples_per_prompt={num_samples}. Sample more or lower k."
        )


def check_same_problems(**arrays: Sequence | np.ndarray) -> None:
    (name, array), (other_name, other) = arrays.items()
    if len(array) != len(other):
        raise UserError(
            f"len({name})={len(array)} must be the same number of problems throughout; "
            f"got len({other_name})={len(other)}. Take both from one list of problems."
        )


def check_same_samples(**arrays: Sequence | np.ndarray) -> None:
    check_same_problems(**arrays)
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


def check_both_classes(positives: int, negatives: int) -> None:
    if not (positives and negatives):
        raise UserError(
            f"labels must hold right and wrong completions; got positives={positives}, "
            f"negatives={negatives}. Add problems, or sample more per problem."
        )
