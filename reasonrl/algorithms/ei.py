"""Expert Iteration (Anthony et al., 2017; Havrilla et al., 2024, section 2).

    D_0 ← the reference solutions if π_0 was fine-tuned on them, else {}
    for i = 1 … rounds:
        R_i ← K completions of every training question, sampled from π_{i-1}
        R_i ← those that score at least the reward's threshold, each sequence of calculations once
              (top_per_problem=m: of these the m best of each question)
        D_i ← D_{i-1} ∪ R_i                                (accumulate=false: R_i alone)
        π_i ← the pretrained base fine-tuned on D_i        (restart=false: π_{i-1} fine-tuned)
    return the π_i with the best validation maj@1

A pretrained π_0 is asked with a few-shot prompt. The examples in D hold the question alone, so
every later policy is asked without exemplars. The rounds of a finished run are the first ones of a
longer run.

Four choices are made where the paper is silent: D_0 holds the references with init=sft; a round
that finds nothing new leaves the policy as it is; of a round's completions with the same
calculations the one with the highest score is kept, and of equal scores the shortest, while one of
an earlier round stays whatever a later one scores. A starting policy that any round changed is not
returned, even if it validated better: the run says what learning came to.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np

from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.grading.base import Grader
from reasonrl.job import Job
from reasonrl.learning.supervised import Example, Position, with_end
from reasonrl.learning.weighting import problem_weights, spread
from reasonrl.rewards.verdicts import completions_statistics
from reasonrl.sampling.rollouts import read_rollouts
from reasonrl.types import Rollout, SavedPolicy
from reasonrl.util.atomic import copy, remove_folder, write_json
from reasonrl.util.seeding import derive_seed

logger = logging.getLogger(__name__)

# Two solutions of a problem with the same trace (``Grader.trace``) count as one.
Key = tuple[str, tuple[str, ...]]  # problem id, trace


@dataclass(frozen=True)
class Round:
    """A finished round; a resumed run is continued after the last one."""

    number: int  # 0 is the starting policy
    learnt_in: int  # the round that learnt the policy this one ended with, maybe an earlier one
    validation: float  # that policy's maj@1
    rollouts: int  # sampled so far, in all rounds
    steps: int  # optimizer steps so far, in all rounds
    base_hash: str | None  # of the weights that learning started from; None: nothing was learnt
    log_position: int  # the position in the log of metrics after this round


def run(job: Job, settings: EIConfig) -> SavedPolicy:
    rounds = job.process.first(lambda: read_rounds(job.run.path))
    if not rounds:
        rounds = _recorded(job, [_round_zero(job)])
    solutions = _solutions_so_far(job, rounds, settings)
    while len(rounds) <= settings.rounds and not _out_of_patience(rounds, settings.patience):
        began = time.monotonic()
        rollouts = _explore(job, rounds[-1], settings)
        if not settings.accumulate:
            solutions = {}
        new = _add_new(job, solutions, rollouts, settings)
        improved = _improve(job, rounds[-1], solutions, rollouts, new, settings, began)
        rounds = _recorded(job, [*rounds, improved])
    best = _best(rounds)
    if best.learnt_in == 0:
        return _policy(job, best)
    job.process.first(lambda: copy(_policy_folder(job, best.learnt_in), job.run.policy))
    return SavedPolicy(str(job.run.policy), few_shot=False)


def keep_distinct(
    rollouts: Sequence[Rollout], grader: Grader, threshold: float, top: int | None = None
) -> dict[Key, Rollout]:
    """The rollouts that score at least ``threshold``, one for each trace of a solution.

    Of several with the same trace the best is kept, whatever their order: the highest score decides
    first, then the fewest tokens, then the lowest ids.

    top: keeps at most so many of each problem, the best ones.
    """
    kept: dict[Key, Rollout] = {}
    for rollout in rollouts:
        if rollout.score >= threshold:
            key = (rollout.completion.problem_id, grader.trace(rollout.completion.text))
            kept[key] = min(kept.get(key, rollout), rollout, key=_best_first)
    if top is None:
        return kept
    chosen = _first_of_each_problem(sorted(kept, key=lambda key: _best_first(kept[key])), top)
    return {key: rollout for key, rollout in kept.items() if key in chosen}


def _best_first(rollout: Rollout) -> tuple[float, int, tuple[int, ...]]:
    ids = tuple(rollout.completion.token_ids)
    return -rollout.score, len(ids), ids


def cap_per_problem(
    solutions: Mapping[Key, Example], cap: int | None, seed: int
) -> dict[Key, Example]:
    """The solutions to learn from: at most ``cap`` of each problem, drawn at random (None: all)."""
    if cap is None:
        return dict(solutions)
    keys = list(solutions)
    order = np.random.default_rng(seed).permutation(len(keys))
    drawn = _first_of_each_problem((keys[i] for i in order), cap)
    return {key: solutions[key] for key in keys if key in drawn}


def weighted(solutions: Mapping[Key, Example], weighting: str) -> dict[Key, Example]:
    """The solutions with their weights in the loss: see ``EIConfig.weighting``."""
    if weighting == "sample":
        return dict(solutions)
    weights = problem_weights([problem_id for problem_id, _ in solutions])
    return {
        key: replace(example, weight=weight)
        for (key, example), weight in zip(solutions.items(), weights, strict=True)
    }


def _first_of_each_problem(keys: Iterable[Key], limit: int) -> set[Key]:
    taken: Counter[str] = Counter()
    first: set[Key] = set()
    for key in keys:
        problem_id, _ = key
        taken[problem_id] += 1
        if taken[problem_id] <= limit:
            first.add(key)
    return first


def read_rounds(folder: Path) -> list[Round]:
    """The finished rounds of a run, from round 0, the starting policy; empty before that."""
    journal = folder / "rounds.json"
    return [Round(**r) for r in json.loads(journal.read_text())] if journal.exists() else []


def _best(rounds: Sequence[Round]) -> Round:
    """The round with the best validation maj@1, and the earlier one of equals.

    The starting policy is chosen only if no round changed it.
    """
    updated = [r for r in rounds if r.learnt_in > 0]
    return max(updated or rounds[:1], key=lambda r: r.validation)


def _out_of_patience(rounds: Sequence[Round], patience: int | None) -> bool:
    return patience is not None and len(rounds) - 1 - _best(rounds).number >= patience


def _round_zero(job: Job) -> Round:
    validation = _validate(job, 0, SavedPolicy(job.init, job.few_shot))
    job.log.rewind(0)
    job.log.log(0, {"ei/round": 0, "ei/rollouts": 0, "eval/validation_maj@1": validation})
    return Round(0, 0, validation, 0, 0, None, job.log.position())


def _policy(job: Job, round: Round) -> SavedPolicy:
    if round.learnt_in == 0:
        return SavedPolicy(job.init, job.few_shot)
    return SavedPolicy(str(_policy_folder(job, round.learnt_in)), few_shot=False)


def _policies(job: Job) -> Path:
    """The folder of the policies that are kept, for more rounds to go on from."""
    return job.run.path / "rounds"


def _policy_folder(job: Job, number: int) -> Path:
    return _policies(job) / str(number)


def _recorded(job: Job, rounds: Sequence[Round]) -> list[Round]:
    """The rounds as the journal has them from now on.

    Each policy that is neither the best nor the last is removed.
    """

    def record() -> list[Round]:
        write_json(job.run.path / "rounds.json", [asdict(r) for r in rounds])
        kept = {_policy_folder(job, r.learnt_in) for r in (_best(rounds), rounds[-1])}
        for folder in {*job.work.glob("*"), *_policies(job).glob("*")} - kept:
            remove_folder(folder)
        return [*rounds]

    return job.process.first(record)


def _explore(job: Job, previous: Round, config: EIConfig) -> list[Rollout]:
    """K completions of every training question from the last round's policy."""
    number = previous.number + 1
    policy = _policy(job, previous)
    return job.collect(
        job.sampler(policy.path),
        job.train,
        job.prompts(job.train, few_shot=policy.few_shot),
        job.params(config.samples_in_round(number), config.temperature),
        seed=derive_seed(job.config.seed, "ei", number, "explore"),
        file=_rollouts_file(job, number),
        description=f"round {number}: sampling",
        reward=job.reward(),
    )


def _improve(
    job: Job,
    previous: Round,
    solutions: Mapping[Key, Example],
    rollouts: Sequence[Rollout],
    new: Mapping[Key, Rollout],
    config: EIConfig,
    began: float,
) -> Round:
    """Fine-tunes on the solutions so far, and validates the policy.

    began: when the round began, by ``time.monotonic``.
    """
    number = previous.number + 1
    policy, learnt_in = _policy(job, previous), previous.learnt_in
    steps, base_hash = previous.steps, None
    seed = derive_seed(job.config.seed, "ei", number, "learn")
    chosen = cap_per_problem(solutions, config.max_per_problem, seed)
    examples = weighted(chosen, config.weighting)
    spread_over = _spread(examples, rollouts) if new else {}
    if new:
        learner = job.learner(job.base if config.restart else policy.path)
        base_hash = job.weights_hash(learner.model)
        folder = _policy_folder(job, number)
        steps += job.fine_tune(
            learner,
            list(examples.values()),
            config,
            seed=seed,
            description=f"round {number}: fine-tuning",
            checkpoints=f"round-{number}.checkpoints",
            start=Position(previous.steps, previous.log_position),
        )
        job.save_policy(learner, folder)
        policy, learnt_in = SavedPolicy(str(folder), few_shot=False), number
    else:
        logger.warning(
            "round %d found no new solution that scores %g or more; the policy stays as it is",
            number,
            job.config.reward.threshold,
        )
        job.log.rewind(previous.log_position)

    validation = _validate(job, number, policy)
    per_problem = Counter(problem_id for problem_id, _ in solutions)
    num_tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
    sampled = {f"rollout/{name}": value for name, value in completions_statistics(rollouts).items()}
    job.log.log(
        steps,
        {
            "ei/round": number,
            "ei/rollouts": previous.rollouts + len(rollouts),
            "ei/new_solutions": len(new),
            "ei/new_correct": sum(rollout.correct for rollout in new.values()),
            "ei/solutions": len(solutions),
            "ei/solutions_capped": len(solutions) - len(examples),
            "ei/problems_solved": len(per_problem) / len(job.train),
            "ei/most_per_problem": max(per_problem.values(), default=0),
            **{f"ei/{name}": value for name, value in spread_over.items()},
            **sampled,
            "eval/validation_maj@1": validation,
            "time/tokens_per_second": num_tokens / (time.monotonic() - began),
        },
    )
    return Round(
        number=number,
        learnt_in=learnt_in,
        validation=validation,
        rollouts=previous.rollouts + len(rollouts),
        steps=steps,
        base_hash=base_hash,
        log_position=job.log.position(),
    )


def _spread(examples: Mapping[Key, Example], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How the weight of what is learnt from is spread over problems, by a round's solve rates."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        verdicts[rollout.completion.problem_id].append(rollout.correct)
    return spread(
        ((problem_id, e.weight or 1.0) for (problem_id, _), e in examples.items()),
        {problem_id: fmean(correct) for problem_id, correct in verdicts.items()},
    )


def _validate(job: Job, number: int, policy: SavedPolicy) -> float:
    return job.accuracy(
        job.sampler(policy.path),
        job.validation,
        few_shot=policy.few_shot,
        file=job.run.evaluation / "validation" / f"round-{number}.parquet",
        description=f"round {number}: validation",
    )


def _solutions_so_far(job: Job, rounds: Sequence[Round], config: EIConfig) -> dict[Key, Example]:
    """D_i of the last finished round, from the reference solutions and the rollouts on disk."""
    solutions: dict[Key, Example] = {}
    if job.config.init.name == "sft":
        traces = {problem.id: job.grader.trace(problem.solution) for problem in job.train}
        solutions = {(id, traces[id]): example for id, example in job.references().items()}
    for previous, current in pairwise(rounds):
        prompts = job.prompts(job.train, few_shot=_policy(job, previous).few_shot)
        rollouts = read_rollouts(_rollouts_file(job, current.number), prompts)
        _add_new(job, solutions, rollouts, config)
    return solutions


def _add_new(
    job: Job, solutions: dict[Key, Example], rollouts: Sequence[Rollout], config: EIConfig
) -> dict[Key, Rollout]:
    """Adds the good ones among a round's rollouts to D; returns those that D didn't have yet."""
    good = keep_distinct(rollouts, job.grader, job.config.reward.threshold, config.top_per_problem)
    new = {key: rollout for key, rollout in good.items() if key not in solutions}
    solutions |= _examples(job, new)
    return new


def _examples(job: Job, rollouts: Mapping[Key, Rollout]) -> dict[Key, Example]:
    """The rollouts as examples: each has the sampled ids behind the question alone."""
    prompts = job.prompts(job.train, few_shot=False)
    prompt_ids = {prompt.problem_id: prompt.token_ids for prompt in prompts}
    end_token = job.end_token
    return {
        key: Example(prompt_ids[key[0]], with_end(rollout.completion, end_token))
        for key, rollout in rollouts.items()
    }


def _rollouts_file(job: Job, number: int) -> Path:
    return job.run.rollouts / f"round-{number}.parquet"
