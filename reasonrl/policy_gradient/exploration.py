"""What an iteration samples, and which of it is learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.job import Job
from reasonrl.policy_gradient.baselines import SAMPLED
from reasonrl.policy_gradient.experience import questions, trainable
from reasonrl.sampling import Sampler
from reasonrl.types import Rollout
from reasonrl.util.seeding import derive_seed, next_in_stream


@dataclass(frozen=True, slots=True)
class Explored:
    """What an iteration sampled."""

    rollouts: Sequence[Rollout]  # all of them, question after question
    learnt: Sequence[Rollout]  # those that are learnt from
    beside: Mapping[str, Any] = field(default_factory=dict)  # the baseline's: fields of ``Scored``


class Exploration:
    """Samples N completions of each of an iteration's questions."""

    def __init__(self, job: Job, config: PPOConfig) -> None:
        """Makes the reward that the completions are scored by."""
        self.job, self.config = job, config
        self.reward = job.reward()
        self._num_questions = config.rollouts_per_iteration // config.num_samples_per_prompt

    def sample(self, sampler: Sampler, iteration: int) -> Explored:
        """Samples an iteration's rollouts, and what its baseline needs beside them.

        Where questions are left out whose completions all score the same, others are asked in their
        place, ``resamplings`` times at most. What was sampled before a kill is read back.
        """
        config = self.config
        rollouts: list[Rollout] = []
        for attempt in range(config.resamplings + 1):
            if len(self._kept(rollouts)) < config.rollouts_per_iteration:
                rollouts += self._ask(sampler, iteration, attempt)
        explored = self.explored(rollouts)
        if config.baseline not in SAMPLED or not explored.learnt:
            return explored
        more = SAMPLED[config.baseline]
        beside = more(self.job, self.reward, sampler, explored.learnt, iteration, config)
        return replace(explored, beside=beside)

    def explored(self, rollouts: Sequence[Rollout]) -> Explored:
        """Tells which of an iteration's rollouts are learnt from."""
        kept = self._kept(rollouts)
        return Explored(rollouts, trainable(kept, mask_truncated=self.config.mask_truncated))

    def _kept(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        return questions(rollouts, self.config.filter, self._num_questions)

    def _ask(self, sampler: Sampler, iteration: int, attempt: int) -> list[Rollout]:
        """Samples N completions of each of as many questions as an iteration has."""
        job, config, count = self.job, self.config, self._num_questions
        place = (iteration - 1) * (config.resamplings + 1) + attempt
        problems = next_in_stream(job.train, place * count, count, job.config.seed)
        again = f"-again-{attempt}" if attempt else ""
        return job.collect(
            sampler,
            problems,
            job.prompts(problems, few_shot=job.few_shot),
            job.params(config.num_samples_per_prompt, config.temperature),
            seed=derive_seed(job.config.seed, "ppo", iteration, f"explore{again}"),
            file=job.run.rollouts / f"iteration-{iteration:05d}{again}.parquet",
            description=f"iteration {iteration} of {config.iterations}: sampling",
            reward=self.reward,
        )
