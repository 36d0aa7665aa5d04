"""Return-Conditioned RL (Havrilla et al., 2024, section 2; Chen et al., 2021; Du et al., 2023).

    R ← completions of every training question, sampled from the policy of Expert Iteration
        (runs of their own); as many right as wrong ones             (solution_ratio)
    for each step i of each a in R:
        R_i ← how good the step is, between 0 and 1                  (rewards.returns)
        l_i ← [GOOD] if R_i ≥ 0.5 else [BAD]                         (labels, thresholds)
    θ ← the pretrained base                                          (restart)
    θ ← argmin  Σ over steps  −log π_θ(a_i | q, l_1, a_1, …, l_i)    labels are read, not learnt
    act: put [GOOD] before each step, sample the step, go on

The policy learns from good and bad steps alike which is which, and is then asked for good ones. The
conditioning gap is its accuracy under the best label minus that under the worst; it says whether
the policy has learnt the difference.

Four choices are made where the paper is silent: labels of earlier steps stay in the context, as in
decision transformers, in learning and in acting; a step is a line; steps that ``step_ratio`` leaves
out are read but not learnt; the labels are tokens of their own, which no text encodes to and which
are never sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from reasonrl.config.algorithm.rcrl import RCRLConfig
from reasonrl.grading.steps import step_starts
from reasonrl.job import Job
from reasonrl.learning.supervised import Example, with_end
from reasonrl.policy.adapters import add_tokens
from reasonrl.policy.policy import Policy
from reasonrl.problems.prompts import label_ids
from reasonrl.rewards.returns import keep_ratio, solution_returns, step_returns
from reasonrl.sampling.rollouts import write_table
from reasonrl.types import Rollout, SavedPolicy
from reasonrl.util.errors import UserError
from reasonrl.util.seeding import derive_seed

LEARNT = "policy"  # where the policy is until it is validated
LABELS = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_index": pa.int32(),
        "correct": pa.bool_(),
        "number": pa.int32(),
        "return": pa.float64(),
        "label": pa.string(),
        "learnt": pa.bool_(),
    }
)


@dataclass(frozen=True)
class Steps:
    """All steps of all solutions, one after another; each array has an entry for each step."""

    solution: np.ndarray  # the index of the step's solution among the rollouts
    number: np.ndarray  # the step's number in its solution, from 0
    value: np.ndarray  # its return
    label: np.ndarray  # its label, as an index of ``label_texts``
    learnt: np.ndarray  # whether it is learnt from


def run(job: Job, settings: RCRLConfig) -> SavedPolicy:
    learner = job.learner(job.base if settings.restart else job.init)
    labels = add_labels(learner, settings, derive_seed(job.config.seed, "rcrl", "tokens"))
    if not job.process.first(job.run.policy.exists):
        samples = job.samples("train", settings.num_solutions_per_prompt)
        rollouts = [r for r in samples if job.grader.step_ends(r.completion.text)]
        returns = _returns(job, rollouts, settings)
        steps = choose(
            returns,
            [r.correct for r in rollouts],
            settings,
            derive_seed(job.config.seed, "rcrl", "steps"),
        )
        job.process.first(lambda: _write_labels(job, rollouts, steps, list(labels)))
        _check_labels(steps, settings)
        examples = make_examples(job, rollouts, steps, list(labels.values()))
        num_steps = _learn(job, settings, learner, examples)
        del learner  # sampling needs its memory
        _validate(job, labels, num_steps, label_statistics(rollouts, steps, list(labels)))
    return SavedPolicy(str(job.run.policy), few_shot=False, labels=labels)


def _returns(job: Job, rollouts: Sequence[Rollout], settings: RCRLConfig) -> list[list[float]]:
    """The return of each step of each rollout, as ``settings.returns`` defines it."""
    reward = job.reward(num_continuations=settings.num_continuations)
    problem_of = {problem.id: problem for problem in job.train}
    problems = [problem_of[rollout.prompt.problem_id] for rollout in rollouts]
    if settings.returns == "solution":
        best = job.config.reward.best
        return solution_returns(reward, best, rollouts, problems, job.tokenizer, job.grader)
    with job.progress.task("judging steps", len(rollouts)) as advance:
        return step_returns(reward, rollouts, problems, advance)


def add_labels(policy: Policy, config: RCRLConfig, seed: int) -> dict[str, tuple[int, ...]]:
    """The token ids of each label, from the worst on.

    With ``label_tokens=own`` the policy gets a new token for each.
    """
    texts = config.label_texts
    if config.label_tokens == "text":
        return label_ids(texts, policy.tokenizer)
    new = add_tokens(policy, len(texts), seed)
    return {text: (token,) for text, token in zip(texts, new, strict=True)}


def choose(
    returns: Sequence[Sequence[float]], correct: Sequence[bool], config: RCRLConfig, seed: int
) -> Steps:
    """Labels steps by their returns, and chooses those to learn from by the ratios.

    returns: those of each solution's steps.
    correct: whether each solution is right.
    """
    solution = np.repeat(np.arange(len(returns)), [len(values) for values in returns])
    number = np.array([i for values in returns for i in range(len(values))], dtype=int)
    value = np.array([value for values in returns for value in values])
    label = np.array([config.label_number(v) for v in value], dtype=int)
    rng, best = np.random.default_rng(seed), len(config.label_texts) - 1
    kept = keep_ratio(correct, config.solution_ratio, rng)[solution]
    learnt = kept.copy()
    learnt[kept] = keep_ratio(label[kept] == best, config.step_ratio, rng)
    if config.shuffle_labels:
        label[kept] = rng.permutation(label[kept])
    return Steps(solution, number, value, label, learnt)


def _check_labels(steps: Steps, config: RCRLConfig) -> None:
    """Raises UserError if no step to learn from has the label that will be asked for."""
    texts = config.label_texts
    if not (steps.label[steps.learnt] == len(texts) - 1).any():
        raise UserError(
            f"algorithm=rcrl must have steps labelled {texts[-1]} to learn from; got "
            f"{int(steps.learnt.sum())} steps with other labels, of {len(steps.label)} in all. "
            "Sample from a better policy, lower the last of algorithm.thresholds, or pass another "
            f"algorithm.solution_ratio than {config.solution_ratio}."
        )


def make_examples(
    job: Job, rollouts: Sequence[Rollout], steps: Steps, ids_of: Sequence[tuple[int, ...]]
) -> list[Example]:
    """The solutions with a step to learn from, as question, label, step, label, step …

    The ids of a step stand as they were sampled, behind those of its label; a label is never
    learnt.
    """
    prompts = job.prompts(job.train, few_shot=False)
    prompt_ids = {prompt.problem_id: prompt.token_ids for prompt in prompts}
    end_token = job.end_token
    bounds = np.searchsorted(steps.solution, range(len(rollouts) + 1))
    examples = []
    for rollout, (first, last) in zip(rollouts, pairwise(bounds), strict=True):
        labels, learnt = steps.label[first:last], steps.learnt[first:last]
        if not learnt.any():
            continue
        starts = step_starts(job.tokenizer, rollout.completion, job.grader)
        token_ids = with_end(rollout.completion, end_token)
        ends = [*(start for start, _ in starts[1:]), len(token_ids)]
        ids: list[int] = []
        loss_mask: list[bool] = []
        for (start, number), end in zip(starts, ends, strict=True):
            label = ids_of[labels[number]]
            ids += [*label, *token_ids[start:end]]
            loss_mask += [False] * len(label) + [bool(learnt[number])] * (end - start)
        question = prompt_ids[rollout.prompt.problem_id]
        examples.append(Example(question, tuple(ids), tuple(loss_mask)))
    return examples


def _learn(
    job: Job,
    settings: RCRLConfig,
    learner: Policy,
    examples: Sequence[Example],
) -> int:
    """Fits the learner and saves it; returns the number of optimizer steps."""
    seed = derive_seed(job.config.seed, "rcrl", "learn")
    steps = job.fine_tune(
        learner,
        examples,
        settings,
        seed=seed,
        description="learning from steps",
        checkpoints="policy.checkpoints",
    )
    job.save_policy(learner, job.work / LEARNT)
    return steps


def _validate(
    job: Job,
    labels: Mapping[str, tuple[int, ...]],
    steps: int,
    statistics: Mapping[str, float],
) -> None:
    """Validates what was learnt under each label, logs it, and makes it the run's policy.

    steps: the optimizer steps that were taken.
    statistics: more to log.
    """
    learnt = job.work / LEARNT
    sampler = job.sampler(str(learnt))
    accuracies = [
        job.accuracy(
            sampler,
            job.validation,
            few_shot=False,
            file=job.run.evaluation / "validation" / f"label-{number}.parquet",
            description=f"validation under {text}",
            step_label=ids,
        )
        for number, (text, ids) in enumerate(labels.items())
    ]
    job.log.log(
        steps,
        {
            **{f"rcrl/{name}": value for name, value in statistics.items()},
            **{f"rcrl/maj@1_{text}": a for text, a in zip(labels, accuracies, strict=True)},
            "rcrl/conditioning_gap": accuracies[-1] - accuracies[0],
            "eval/validation_maj@1": accuracies[-1],
        },
    )
    job.process.first(lambda: learnt.rename(job.run.policy))


def label_statistics(
    rollouts: Sequence[Rollout], steps: Steps, texts: Sequence[str]
) -> dict[str, float]:
    """How much is learnt from, and each label's share of the steps learnt from and of all steps."""
    solutions = np.unique(steps.solution[steps.learnt])
    learnt = np.bincount(steps.label[steps.learnt], minlength=len(texts)) / steps.learnt.sum()
    sampled = np.bincount(steps.label, minlength=len(texts)) / len(steps.label)
    return {
        "solutions": len(solutions),
        "solutions_right": float(np.mean([rollouts[i].correct for i in solutions])),
        "steps": int(steps.learnt.sum()),
        **{f"share_{text}": share for text, share in zip(texts, learnt, strict=True)},
        **{f"sampled_share_{text}": share for text, share in zip(texts, sampled, strict=True)},
    }


def _write_labels(
    job: Job, rollouts: Sequence[Rollout], steps: Steps, texts: Sequence[str]
) -> None:
    """Writes rollouts/labels.parquet: each step, its return, its label, whether it is learnt."""
    of_step = [rollouts[i] for i in steps.solution]
    columns = {
        "problem_id": [rollout.prompt.problem_id for rollout in of_step],
        "sample_index": [rollout.completion.sample_index for rollout in of_step],
        "correct": [rollout.correct for rollout in of_step],
        "number": steps.number,
        "return": steps.value,
        "label": [texts[label] for label in steps.label],
        "learnt": steps.learnt,
    }
    write_table(job.run.rollouts / "labels.parquet", pa.table(columns, schema=LABELS))
