"""Outcome reward model (Cobbe et al., 2021; Havrilla et al., 2024, section 2).

    R ← K completions of every training question, sampled from the policy π (a run of its own)
    split R by question: to learn from, and held out
    φ ← π's trunk and a scalar head
    φ ← argmin  Σ over a in R  Σ over tokens t of a  BCE(σ(φ(q, a_≤t)), [a is right])
    φ ← φ calibrated on what was held out

targets=final keeps only the last token of each completion. With balanced=true right and wrong
completions weigh the same in all, whatever their numbers; the calibration restores the true odds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reasonrl.config.algorithm.orm import ORMConfig
from reasonrl.job import Job
from reasonrl.reward_models.learning import Targets, held_out_questions, learn_reward_model
from reasonrl.reward_models.network import Labelled
from reasonrl.types import Rollout


def run(job: Job, settings: ORMConfig) -> None:
    rollouts = [r for r in job.samples("train") if r.completion.token_ids]
    held_out = held_out_questions(rollouts, settings.held_out, job.config.seed)
    learnt = [r for r in rollouts if r.prompt.problem_id not in held_out]
    aside = [r for r in rollouts if r.prompt.problem_id in held_out]
    weight = class_weights(learnt) if settings.balanced else {True: 1.0, False: 1.0}
    learn_reward_model(
        job,
        settings,
        [
            Labelled(
                r.prompt.token_ids,
                tuple(r.completion.token_ids),
                outcome_targets(r, settings.targets),
                weight[r.correct],
            )
            for r in learnt
        ],
        [(r, outcome_targets(r, "final")) for r in aside],
    )


def class_weights(rollouts: Sequence[Rollout]) -> dict[bool, float]:
    """The weights N / 2N₊ and N / 2N₋, with which right and wrong completions weigh the same."""
    counts = Counter(rollout.correct for rollout in rollouts)
    return {correct: len(rollouts) / (2 * max(counts[correct], 1)) for correct in (True, False)}


def outcome_targets(rollout: Rollout, targets: str) -> Targets:
    """The completion's label at each of its tokens, or at the last one alone (``final``)."""
    length, label = len(rollout.completion.token_ids), float(rollout.correct)
    if targets == "tokens":
        return (label,) * length
    return (None,) * (length - 1) + (label,)
