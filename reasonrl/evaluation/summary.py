"""What graded completions say: the metrics of an evaluation, and the file that has them.

It needs neither a model nor torch: the completions may be anyone's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from reasonrl.grading import Grader
from reasonrl.grading.estimates import (
    Estimate,
    estimate_mean,
    paired_difference,
)
from reasonrl.grading.metrics import (
    best_of_n,
    majority_vote,
    pass_at_k,
    reported_k,
    unique_correct,
    unique_fraction,
    weighted_vote,
)
from reasonrl.rewards.verdicts import completions_statistics
from reasonrl.types import Problem, Rollout
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError

METRICS = "metrics.json"
MANY_UNPARSED = 0.5  # of completions; from here on the form of the answer is the likely cause

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured."""

    problem_ids: tuple[str, ...]
    scores: dict[str, np.ndarray]  # by metric, one number per problem in the order of problem_ids
    statistics: dict[str, float]  # single numbers over completions, such as the fraction unparsed

    def estimates(self) -> dict[str, Estimate]:
        """The mean of each metric, with its 95% interval over problems."""
        return {name: estimate_mean(scores) for name, scores in self.scores.items()}

    def gain_on(self, before: Evaluation) -> dict[str, Estimate]:
        """The paired difference of this evaluation to ``before``, of each metric that both have.

        Raises UserError if they aren't of the same problems.
        """
        if self.problem_ids != before.problem_ids:
            raise UserError("two evaluations must be of the same problems to be compared.")
        return {
            name: paired_difference(before.scores[name], self.scores[name])
            for name in self.scores
            if name in before.scores
        }


def summarise(
    problems: Sequence[Problem],
    greedy: Sequence[Rollout],
    samples: Sequence[Rollout],
    grader: Grader,
) -> Evaluation:
    """The metrics of graded completions.

    greedy: one rollout per problem, in the problems' order, or none at all.
    samples: K rollouts per problem, grouped, in the problems' order.
    """
    rows = [list(group) for _, group in groupby(samples, key=lambda r: r.completion.problem_id)]
    num_samples = len(rows[0])
    correct = np.array([[r.correct for r in row] for row in rows])
    traces = [[grader.trace(r.completion.text) for r in row] for row in rows]
    scores = {"maj@1": np.array([r.correct for r in greedy], dtype=float)} if greedy else {}
    if num_samples > 1:
        golds = [p.answer for p in problems]
        scores[f"maj@{num_samples}"] = majority_vote(_votes(rows, golds), golds)
    scores |= {f"pass@{k}": pass_at_k(correct, k) for k in reported_k(num_samples)}
    kinds = {"greedy": greedy, "sampled": samples}
    statistics = {
        f"{kind}/{name}": value
        for kind, rollouts in kinds.items()
        if rollouts
        for name, value in completions_statistics(rollouts).items()
    }
    statistics["sampled/unique_fraction"] = float(unique_fraction(traces).mean())
    statistics["sampled/unique_correct"] = float(unique_correct(traces, correct).mean())
    for k in range(1, num_samples + 1):
        statistics[f"pass_curve/{k}"] = float(pass_at_k(correct, k).mean())
    return Evaluation(tuple(p.id for p in problems), scores, statistics)


def _votes(rows: Sequence[Sequence[Rollout]], golds: Sequence[str]) -> list[list[str | None]]:
    """The answers of each problem's samples; a right answer is replaced by the gold one.

    So right answers that are written differently count as the same.
    """
    return [
        [gold if r.correct else r.answer for r in row]
        for row, gold in zip(rows, golds, strict=True)
    ]


def chosen_by_reward_model(
    samples: Sequence[Rollout], problems: Sequence[Problem], probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores rerank@K and weighted_maj@K of each problem.

    samples: K per problem, grouped, in the problems' order.
    probabilities: the reward model's probability that each sample is right, in the same order.
    """
    shape = (len(problems), -1)
    correct = np.array([r.correct for r in samples]).reshape(shape)
    rows = [list(group) for _, group in groupby(samples, key=lambda r: r.completion.problem_id)]
    golds = [p.answer for p in problems]
    weights = np.asarray(probabilities).reshape(shape)
    num_samples = correct.shape[1]
    return {
        f"rerank@{num_samples}": best_of_n(correct, weights),
        f"weighted_maj@{num_samples}": weighted_vote(_votes(rows, golds), golds, weights),
    }


def write_estimates(estimates: Mapping[str, Estimate], path: Path, **beside: Any) -> None:
    """Writes the estimates as JSON, with the keywords ``beside`` them."""
    write_json(path, {"estimates": {name: asdict(e) for name, e in estimates.items()}, **beside})


def read_estimates(path: Path) -> dict[str, Estimate]:
    """The estimates that ``write_estimates`` wrote."""
    estimates = json.loads(path.read_text())["estimates"]
    return {name: Estimate(**estimate) for name, estimate in estimates.items()}


def warn_of_unparsed(share: float, grader: Grader) -> None:
    """Says what an answer is where most completions have none: they count as wrong.

    A low score can't be told from that of a policy that is always wrong.
    """
    if share > MANY_UNPARSED:
        logger.warning("An answer is %s; all else counts as wrong.", grader.answer_form)
