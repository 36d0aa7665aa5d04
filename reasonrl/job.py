"""What an algorithm is given: its configuration, problems, models, and where to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from reasonrl.config.learner import LearnerConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.supervised import Example, fit, num_steps
from reasonrl.policy.policy import Policy, load_policy, save_policy
from reasonrl.problems.prompts import build_prompts, encode_completions, solution_text
from reasonrl.rewards import REWARDS, Materials, Reward
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import Sampler, SamplingParams, make_sampler
from reasonrl.sampling.rollouts import collect_rollouts, read_rollouts
from reasonrl.types import Problem, Prompt, Rollout
from reasonrl.util.progress import Progress

if TYPE_CHECKING:
    from reasonrl.reward_models.model import RewardModel


@dataclass(frozen=True)
class Job:
    """One run at work.

    base: the pretrained model's folder or hub id. init: the starting policy's.
    tokenizer: the base's; every policy of the run has the same.
    exemplars: solved validation problems of a few-shot prompt.
    few_shot: whether the starting policy is asked with them.
    rollouts: the folder of sampled completions to learn from. steps: the file of what becomes of
        their steps. reward_model: loads a learned reward's, to compute in a dtype on a device. None
        where the algorithm or the reward has none.
    """

    config: TrainConfig
    run: RunFolder
    device: torch.device
    base: str
    init: str
    few_shot: bool
    tokenizer: PreTrainedTokenizerBase
    train: list[Problem]
    validation: list[Problem]
    exemplars: list[Problem]
    log: MetricsLog
    progress: Progress
    rollouts: Path | None = None
    steps: Path | None = None
    reward_model: Callable[[str, torch.device], RewardModel] | None = None
    process: Process = ALONE  # one of those that make the run together

    @property
    def work(self) -> Path:
        """What is there until the run's result is: checkpoints, and policies on the way."""
        return self.run.work

    def learner(self, path: str) -> Policy:
        """A policy to train: its weights are float32, whatever it computes in."""
        return load_policy(path, "float32", self.device)

    def sampler(self, path: str) -> Sampler:
        return self.sampler_of(load_policy(path, self.config.model.compute_dtype, self.device))

    def sampler_of(self, policy: Policy) -> Sampler:
        return make_sampler(self.config.sampler, policy)

    def prompts(self, problems: Sequence[Problem], *, few_shot: bool) -> list[Prompt]:
        exemplars = self.exemplars if few_shot else ()
        return build_prompts(problems, self.tokenizer, self.config.dataset.prompt, exemplars)

    def params(
        self, num_samples_per_prompt: int, temperature: float, step_label: tuple[int, ...] = ()
    ) -> SamplingParams:
        dataset = self.config.dataset
        return SamplingParams(
            num_samples_per_prompt,
            temperature,
            dataset.max_new_tokens,
            tuple(dataset.stop),
            step_label,
        )

    def samples(self, split: str, num_solutions_per_prompt: int | None = None) -> list[Rollout]:
        """The sampled completions of the questions of a split (train, validation), empty ones too.

        With prompts of the question alone, whatever the policy was asked. Of each question the
        first ``num_solutions_per_prompt``, or all.
        """
        assert self.rollouts is not None
        problems = self.train if split == "train" else self.validation
        prompts = self.prompts(problems, few_shot=False)
        rollouts = read_rollouts(self.rollouts / f"{split}.parquet", prompts)
        limit = num_solutions_per_prompt or len(rollouts)
        return [r for r in rollouts if r.completion.sample_index < limit]

    def reward(self, *, num_continuations: int = 0) -> Reward:
        """The run's reward at work. num_continuations: of each step, where they are continued."""
        materials = Materials(
            self.tokenizer, self._load_reward_model(), self.steps, num_continuations
        )
        return REWARDS[self.config.reward.name](self.config.reward, materials)

    def _load_reward_model(self) -> RewardModel | None:
        """That of a learned reward; None of any other."""
        if self.reward_model is None:
            return None
        return self.reward_model(self.config.model.compute_dtype, self.device)

    def references(self) -> dict[str, Example]:
        """The reference solutions there are to learn from, by problem id."""
        problems = self.train[: self.config.dataset.num_references]
        prompts = self.prompts(problems, few_shot=False)
        completions = encode_completions(map(solution_text, problems), self.tokenizer)
        return {
            prompt.problem_id: Example(prompt.token_ids, ids)
            for prompt, ids in zip(prompts, completions, strict=True)
        }

    def accuracy(
        self,
        sampler: Sampler,
        problems: list[Problem],
        *,
        few_shot: bool,
        file: Path,
        description: str,
        step_label: tuple[int, ...] = (),
    ) -> float:
        """maj@1 of the sampler's policy: the fraction its greedy completions solve."""
        with self.progress.task(description, len(problems)) as advance:
            rollouts = collect_rollouts(
                sampler,
                problems,
                self.prompts(problems, few_shot=few_shot),
                self.params(1, 0.0, step_label),
                Outcome(),
                seed=0,  # greedy decoding draws nothing
                file=file,
                on_progress=advance,
                process=self.process,
            )
        return fmean(r.correct for r in rollouts)

    def learn(
        self,
        policy: Policy,
        examples: Sequence[Example],
        folder: Path,
        *,
        seed: int,
        description: str,
        log_start: int,
        first_step: int = 0,
    ) -> None:
        """Fits a learner to the examples and saves it to ``folder`` as a policy."""
        self.fit(
            policy,
            examples,
            folder.name,
            seed=seed,
            description=description,
            log_start=log_start,
            first_step=first_step,
        )
        save_policy(policy, folder, self.config.model.compute_dtype)

    def fit(
        self,
        policy: Policy,
        examples: Sequence[Example],
        name: str,
        *,
        seed: int,
        description: str,
        log_start: int = 0,
        first_step: int = 0,
    ) -> int:
        """Fits a learner to the examples, in place, with checkpoints of that name.

        Returns the number of optimizer steps.
        """
        learner = self.config.algorithm
        assert isinstance(learner, LearnerConfig)
        steps = num_steps(len(examples), learner)
        with self.progress.task(description, steps) as advance:
            fit(
                policy.model,
                examples,
                learner,
                seed=seed,
                compute_dtype=self.config.model.compute_dtype,
                checkpoints=Checkpoints(self.work / f"{name}.checkpoints"),
                checkpoint_seconds=self.config.runtime.checkpoint_seconds,
                log=self.log,
                log_prefix=self.config.algorithm.name,
                log_start=log_start,
                first_step=first_step,
                on_step=advance,
            )
        return steps
