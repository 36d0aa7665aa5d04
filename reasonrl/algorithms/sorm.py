"""Stepwise outcome reward model (GLoRe, Havrilla et al., 2024).

    R ← completions of every training question, sampled from the policy π (a run of its own)
    for each step i of each a in R:
        C ← K completions sampled from π that continue (q, a_≤i)      (a run of its own too)
        label_i ← any of C is right, and uses the results of step i
    label_i ← 1 wherever a later step of the same completion is labelled 1
    at each i, drop steps of the larger class until both are as many    (balanced=false: don't)
    φ ← π's trunk and a scalar head
    φ ← argmin  Σ over steps  BCE(σ(φ(q, a_≤i)), label_i)   at the last token of each step
    φ ← φ calibrated on held-out questions

A completion's last step is labelled by the completion's answer. An outcome reward model learns what
the policy will achieve from a step on, and is pessimistic where the policy is weak; a stepwise one
learns whether the answer can still be reached.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from reasonrl.config.algorithm.sorm import SORMConfig
from reasonrl.job import Job
from reasonrl.reward_models.learning import Targets, held_out_questions, learn_reward_model
from reasonrl.reward_models.network import Labelled
from reasonrl.rewards.steps import Step, read_steps
from reasonrl.types import Rollout
from reasonrl.util.seeding import derive_seed


def run(job: Job, settings: SORMConfig) -> None:
    samples = job.samples("train", settings.num_solutions_per_prompt)
    rollouts = [r for r in samples if r.completion.token_ids]
    assert job.steps is not None
    steps = read_steps(job.steps, rollouts)
    held_out = held_out_questions(rollouts, settings.held_out, job.config.seed)
    aside = [r.prompt.problem_id in held_out for r in rollouts]
    learnt = [[] if out else of_rollout for of_rollout, out in zip(steps, aside, strict=True)]
    if settings.balanced:
        learnt = balance(learnt, seed=derive_seed(job.config.seed, "sorm", "balance"))
    learn_reward_model(
        job,
        settings,
        [
            Labelled(r.prompt.token_ids, tuple(r.completion.token_ids), step_targets(r, kept))
            for r, kept in zip(rollouts, learnt, strict=True)
            if kept
        ],
        [(r, step_targets(r, s)) for r, s, out in zip(rollouts, steps, aside, strict=True) if out],
    )


def balance(steps: Sequence[Sequence[Step]], seed: int) -> list[list[Step]]:
    """Draws at random as many good as bad steps among those with the same number.

    steps: those of each completion. They are returned in the same order of completions, without
        those that weren't drawn.
    """
    rng = np.random.default_rng(seed)
    places: dict[tuple[int, bool], list[tuple[int, Step]]] = defaultdict(list)
    for i, of_completion in enumerate(steps):
        for step in of_completion:
            places[step.number, step.good].append((i, step))
    balanced: list[list[Step]] = [[] for _ in steps]
    for number in sorted({number for number, _ in places}):
        classes = places[number, True], places[number, False]
        for members in classes:
            for drawn in rng.permutation(len(members))[: min(map(len, classes))]:
                i, step = members[drawn]
                balanced[i].append(step)
    return balanced


def step_targets(rollout: Rollout, steps: Sequence[Step]) -> Targets:
    """The targets of a rollout's tokens: each step's label stands at its last token."""
    label_at = {step.token: float(step.good) for step in steps}
    return tuple(label_at.get(token) for token in range(len(rollout.completion.token_ids)))
