"""What a set of sampled completions says about a policy. Pure functions of arrays.

Arrays are problems × samples; every metric is returned per problem, so that the same problems can
be compared between runs (``paired_difference``). Answers are in canonical form
(``answers.extract_answer``), None where a completion has none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reasonrl.errors import UserError


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """The probability that k of the n samples, drawn without replacement, hold a correct one.

    1 − C(n − c, k) / C(n, k) with c of n correct (Chen et al. 2021, eq. 1): unbiased, and as a
    product of ratios free of overflow. Takes bool (problems, n), returns float (problems,).
    Raises UserError unless 1 <= k <= n.
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
        _vote_scores(row, gold, np.ones((1, len(row)), dtype=bool)).mean()
        for row, gold in zip(answers, golds, strict=True)
    ]
    return np.array(scores, dtype=float)


def majority_vote_at_k(
    answers: Sequence[Sequence[str | None]],
    golds: Sequence[str],
    k: int,
    *,
    num_subsets: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """maj@k: ``majority_vote`` among k of the n samples, per problem, as float (problems,).

    Estimated without bias by the mean over ``num_subsets`` random k-subsets, drawn without
    replacement and afresh for each problem; exact where k = n. Raises UserError unless
    1 <= k <= n for every problem and there are as many golds as problems.
    """
    _check_same_problems(golds=golds, answers=answers)
    rng = np.random.default_rng(seed)
    scores = []
    for row, gold in zip(answers, golds, strict=True):
        _check_k(k, len(row))
        ranks = rng.random((num_subsets, len(row))).argsort(axis=1).argsort(axis=1)
        scores.append(_vote_scores(row, gold, ranks < k).mean())
    return np.array(scores, dtype=float)


def _vote_scores(row: Sequence[str | None], gold: str, voters: np.ndarray) -> np.ndarray:
    """The expected score of each electorate, a row of ``voters``: bool (electorates, n)."""
    candidates = list({answer for answer in row if answer is not None} | {gold})
    ballots = np.array([[answer == c for c in candidates] for answer in row], dtype=int)
    votes = voters.astype(int) @ ballots.reshape(len(row), len(candidates))  # (electorates, C)
    most = votes.max(axis=1, keepdims=True)
    leaders = (votes == most) & (most > 0)
    gold_leads = leaders[:, candidates.index(gold)]
    return gold_leads / np.maximum(leaders.sum(axis=1), 1)


def unique_fraction(traces: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Diversity: distinct traces / samples, per problem, as float (problems,).

    With ``answers.solution_trace`` as traces it is the paper's measure. All samples without a
    calculation share one trace, the empty one. Every problem must have a sample.
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n problems with its confidence interval, all as fractions."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """In percent: ``47.1% [44.2, 50.0]``."""
        return f"{100 * self.value:z.1f}% [{100 * self.low:z.1f}, {100 * self.high:z.1f}]"

    def excludes_zero(self) -> bool:
        """Whether a difference is established. Never by one problem, which shows no spread."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def bootstrap_mean(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = 10_000, confidence: float = 0.95
) -> Estimate:
    """The mean of per-problem values with its percentile bootstrap interval over problems.

    Equal values (so also a single one) give an interval of width 0: the bootstrap sees no spread.
    Deterministic in ``seed``. Raises UserError where values is empty, not one-dimensional or not
    finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise UserError(
            f"values must hold one finite number per problem; got values.shape={values.shape}. "
            f"Average over samples first, and score an unparsed answer 0."
        )
    value = float(values.mean())
    if np.ptp(values) == 0:  # scipy would warn of a degenerate distribution
        return Estimate(value, value, value, values.size)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, 2**20 // values.size),  # 8 MB of indices at a time stay in the cache
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), values.size)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> Estimate:
    """``bootstrap_mean`` of b − a over the same problems: what b gains on a.

    Pairing removes the spread between easy and hard problems, so it separates runs that two
    unpaired intervals do not. Raises UserError unless a and b are of one length.
    """
    _check_same_problems(b=b, a=a)
    difference = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return bootstrap_mean(difference, seed=seed, num_resamples=num_resamples, confidence=confidence)


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise UserError(
            f"k={k} must be between 1 and the number of samples per problem; "
            f"got num_samples_per_prompt={num_samples}. Sample more or lower k."
        )


def _check_same_problems(**arrays: Sequence | np.ndarray) -> None:
    (name, array), (other_name, other) = arrays.items()
    if len(array) != len(other):
        raise UserError(
            f"len({name})={len(array)} must be the same number of problems throughout; "
            f"got len({other_name})={len(other)}. Take both from one list of problems."
        )
