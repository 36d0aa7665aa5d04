"""What an algorithm is given: its configuration, problems, models, and where to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from reasonrl.config.learner import LearnerConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.grading.base import Grader
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.learning.supervised import (
    BEGINNING,
    Example,
    Position,
    accumulate_gradients,
    fit,
    num_steps,
)
from reasonrl.policy.policy import DTYPES, Policy, load_policy
from reasonrl.problems.prompts import build_prompts, encode_completions, solution_text
from reasonrl.rewards import REWARDS, Materials, Reward
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import Engine, Sampler, SamplingParams, open_engine
from reasonrl.sampling.rollouts import collect_rollouts, read_rollouts
from reasonrl.types import Problem, Prompt, Rollout
from reasonrl.util.progress import Progress

if TYPE_CHECKING:
    from reasonrl.reward_models.model import RewardModel


@dataclass(frozen=True)
class Job:
    """One run at work."""

    config: TrainConfig
    run: RunFolder
    device: torch.device
    base: str  # the pretrained model's folder or hub id
    init: str  # the starting policy's folder or hub id
    few_shot: bool  # whether the starting policy is asked with the exemplars
    grader: Grader  # the dataset's grader
    tokenizer: PreTrainedTokenizerBase  # the base model's; every policy of the run has the same one
    train: list[Problem]
    validation: list[Problem]
    exemplars: list[Problem]  # solved validation problems of a few-shot prompt
    log: MetricsLog
    progress: Progress
    # Each of these three is None where neither the algorithm nor the reward reads it.
    rollouts: Path | None = None  # the folder of sampled completions to learn from
    steps: Path | None = None  # the file of what becomes of the steps of these completions
    # Loads the reward model of a learned reward; takes the dtype to compute in and the device.
    reward_model: Callable[[str, torch.device], RewardModel] | None = None
    process: Process = ALONE  # one of those that make the run together

    @property
    def work(self) -> Path:
        """The folder of what is kept until the run is done: checkpoints, and interim policies."""
        return self.run.work

    def learner(self, path: str) -> Policy:
        """A policy to train: its weights are float32, whatever dtype it computes in."""
        return load_policy(path, "float32", self.device)

    def sampler(self, source: str | Policy) -> Engine:
        """The run's engine, opened on the policy in a folder or on one in memory."""
        return open_engine(source, self.config, self.device)

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
            self.grader.step_delimiter,
        )

    def samples(self, split: str, num_solutions_per_prompt: int | None = None) -> list[Rollout]:
        """The sampled completions of the questions of a split (train, validation), empty ones too.

        Their prompts hold the question alone, whatever the policy was asked when it sampled them.
        Each question gives its first ``num_solutions_per_prompt`` completions; None: all.
        """
        assert self.rollouts is not None
        problems = self.train if split == "train" else self.validation
        prompts = self.prompts(problems, few_shot=False)
        rollouts = read_rollouts(self.rollouts / f"{split}.parquet", prompts)
        limit = num_solutions_per_prompt or len(rollouts)
        return [r for r in rollouts if r.completion.sample_index < limit]

    def reward(self, *, num_continuations: int = 0) -> Reward:
        """The run's reward, ready to score.

        num_continuations: how many completions continue each step, where steps are continued.
        """
        materials = Materials(
            self.tokenizer,
            self.grader,
            self._load_reward_model(),
            self.steps,
            num_continuations,
        )
        return REWARDS[self.config.reward.name](self.config.reward, materials)

    def _load_reward_model(self) -> RewardModel | None:
        """The reward model of a learned reward; None for any other reward."""
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

    def collect(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        file: Path,
        description: str,
        reward: Reward | None = None,
    ) -> list[Rollout]:
        """Samples completions of the prompts, and grades and scores them: ``collect_rollouts``.

        description: of the work, beside its progress bar.
        reward: scores the completions; None: 1 for the right answer.
        """
        total = len(prompts) * params.num_samples_per_prompt
        tally = self.process.tally(str(file))
        with self.progress.task(description, total, tally) as advance:
            return collect_rollouts(
                sampler,
                problems,
                prompts,
                params,
                Outcome(self.grader) if reward is None else reward,
                self.grader,
                seed=seed,
                file=file,
                on_progress=advance,
                process=self.process,
            )

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
        rollouts = self.collect(
            sampler,
            problems,
            self.prompts(problems, few_shot=few_shot),
            self.params(1, 0.0, step_label),
            seed=0,  # greedy decoding draws nothing
            file=file,
            description=description,
        )
        return fmean(r.correct for r in rollouts)

    def optimization(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        settings: LearnerConfig,
        total_steps: int,
        checkpoints: str,
    ) -> Optimization:
        """The optimizer with its schedule and checkpoints, for a learner to take its steps with.

        checkpoints: the name of the checkpoints' folder in ``work``.
        """
        return Optimization(
            model,
            groups,
            settings,
            total_steps,
            name=self.config.algorithm.name,
            checkpoints=Checkpoints(self.work / checkpoints),
            checkpoint_seconds=self.config.runtime.checkpoint_seconds,
            log=self.log,
            process=self.process,
        )

    def fit(
        self,
        model: nn.Module,
        examples: Sequence[Any],
        settings: LearnerConfig,
        gradients: Callable[..., float] = accumulate_gradients,
        *,
        seed: int,
        description: str,
        checkpoints: str,
        start: Position = BEGINNING,
    ) -> int:
        """Fits the model's trainable parameters, in place; returns the number of optimizer steps.

        gradients: the function that accumulates gradients. It takes the model, the examples of an
            optimizer step, the most tokens of a micro-batch and the dtype to compute in; see
            ``accumulate_gradients``.
        checkpoints: the name of the checkpoints' folder in ``work``.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        steps = num_steps(len(examples), settings)
        optimization = self.optimization(
            model, [Group(trained, settings.learning_rate)], settings, steps, checkpoints
        )
        dtype = DTYPES[self.config.model.compute_dtype]
        with self.progress.task(description, steps) as advance:
            fit(
                optimization,
                examples,
                lambda batch: gradients(model, batch, settings.micro_batch_tokens, dtype),
                seed=seed,
                start=start,
                on_step=advance,
            )
        return steps
