"""What an algorithm is given: its configuration, problems, models, and where to write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from reasonrl.config.learner import FineTuningConfig, LearnerConfig
from reasonrl.config.model import LARGE
from reasonrl.config.schema import TrainConfig
from reasonrl.grading.base import Grader
from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.learning.recompute import recompute_layers
from reasonrl.learning.supervised import (
    BEGINNING,
    Example,
    Position,
    Reader,
    accumulate_gradients,
    fit,
    num_steps,
)
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.ends import name_end_tokens
from reasonrl.policy.head import check_head
from reasonrl.policy.policy import DTYPES, Policy, load_policy, save_policy
from reasonrl.policy.shards import is_sharded, shard, structure, whole_policy
from reasonrl.problems.prompts import PromptForm, build_prompts, form_of
from reasonrl.rewards import REWARDS, Materials, Reward
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import Engine, Sampler, SamplingParams, open_engine
from reasonrl.sampling.rollouts import collect_rollouts, read_rollouts
from reasonrl.sampling.transcript import transcript
from reasonrl.types import Problem, Prompt, Rollout
from reasonrl.util.progress import Progress

if TYPE_CHECKING:
    from reasonrl.reward_models.model import RewardModel

logger = logging.getLogger(__name__)


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

    @property
    def form(self) -> PromptForm:
        """How the run's policies are asked."""
        return form_of(self.config)

    @property
    def end_token(self) -> int:
        """The token that ends what is learnt from: see ``PromptForm.end_token``."""
        return self.form.end_token(self.tokenizer)

    def learner(self, path: str) -> Policy:
        """A policy to train: its weights are float32, whatever dtype it computes in.

        It knows all tokens that end its completions, and is saved with them.

        Where several processes are to train it, the main one has it on the CPU and the others have
        its structure on the meta device; ``shard`` is next.
        """
        if self.process.mesh is None:
            return name_end_tokens(load_policy(path, "float32", self.device), self.end_token)
        read: list[Policy] = []

        def load() -> tuple[PreTrainedConfig, GenerationConfig]:
            policy = load_policy(path, "float32", torch.device("cpu"))
            read.append(name_end_tokens(policy, self.end_token))
            return read[0].model.config, read[0].model.generation_config

        configs = self.process.first(load)
        return read[0] if read else Policy(structure(*configs, torch.float32), self.tokenizer)

    def shard(self, model: nn.Module) -> None:
        """Gives each of several processes its share of a model to train, in place, together."""
        if self.process.mesh is not None:
            shard(model, self.process, DTYPES[self.config.model.compute_dtype])

    def save_policy(self, policy: Policy, folder: Path) -> None:
        """Writes a policy's folder, whole or not at all, in the dtype it computes in, together."""
        model, dtype = policy.model, self.config.model.compute_dtype
        in_shards = self.process.mesh is not None
        whole = whole_policy(model, DTYPES[dtype], self.process) if in_shards else model

        def save() -> None:
            assert whole is not None
            save_policy(Policy(whole, policy.tokenizer), folder, dtype)

        self.process.first(save)

    def weights_hash(self, model: nn.Module) -> str:
        """``weights_hash`` of a model before it is in shards, together."""
        return self.process.first(lambda: weights_hash(model))

    def sampler(self, source: str | Policy) -> Engine:
        """The run's engine, opened on the policy in a folder or on one in memory."""
        return open_engine(source, self.config, self.device)

    def prompts(self, problems: Sequence[Problem], *, few_shot: bool) -> list[Prompt]:
        exemplars = self.exemplars if few_shot else ()
        return build_prompts(problems, self.tokenizer, self.form, exemplars)

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
            (self.end_token,),
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
            self.process,
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
        completions = self.form.reference_ids(problems, self.tokenizer)
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
        """maj@1 of the sampler's policy: the fraction its greedy completions solve.

        The first of them are logged, always of the same problems.
        """
        rollouts = self.collect(
            sampler,
            problems,
            self.prompts(problems, few_shot=few_shot),
            self.params(1, 0.0, step_label),
            seed=0,  # greedy decoding draws nothing
            file=file,
            description=description,
        )
        if self.process.is_main:
            shown = self.config.runtime.log_completions
            for problem, rollout in zip(problems[:shown], rollouts[:shown], strict=True):
                logger.info("%s", transcript(problem, rollout))
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

        model: it is in shards where several processes train it.
        checkpoints: the name of the checkpoints' folder in ``work``.
        """
        if self._recomputes_layers(settings):
            recompute_layers(model)
        return Optimization(
            model,
            groups,
            settings,
            total_steps,
            name=self.config.algorithm.kind,
            checkpoints=Checkpoints(self.work / checkpoints, process=self.process),
            checkpoint_seconds=self.config.runtime.checkpoint_seconds,
            log=self.log,
            process=self.process,
        )

    def _recomputes_layers(self, settings: LearnerConfig) -> bool:
        if settings.checkpoint_layers is not None:
            return settings.checkpoint_layers
        num_parameters = self.config.model.num_parameters or 0
        return self.device.type == "cuda" and num_parameters >= LARGE

    def fine_tune(
        self,
        learner: Policy,
        examples: Sequence[Example],
        settings: FineTuningConfig,
        *,
        seed: int,
        description: str,
        checkpoints: str,
        start: Position = BEGINNING,
    ) -> int:
        """Fits a policy to examples, in place; returns the number of optimizer steps.

        Afterwards it is in shards where several processes trained it, and ``save_policy`` is next.

        checkpoints: the name of the checkpoints' folder in ``work``.
        """
        adapted = (
            add_lora(learner.model, settings.lora_rank, seed)
            if settings.trainable == "lora"
            else None
        )
        reader = Reader(learner.model)
        if self.process.mesh is not None:
            self.process.first(lambda: check_head(learner.model))
            self.shard(reader)
        steps = self.fit(
            reader,
            examples,
            settings,
            accumulate_gradients,
            seed=seed,
            description=description,
            checkpoints=checkpoints,
            start=start,
        )
        if adapted is not None and not is_sharded(reader):
            adapted.merge_and_unload()
        return steps

    def fit(
        self,
        model: nn.Module,
        examples: Sequence[Any],
        settings: LearnerConfig,
        gradients: Callable[..., float],
        *,
        seed: int,
        description: str,
        checkpoints: str,
        start: Position = BEGINNING,
    ) -> int:
        """Fits the model's trainable parameters, in place; returns the number of optimizer steps.

        model: it is in shards where several processes train it.
        gradients: the function that accumulates gradients. It takes the model, the examples of an
            optimizer step, the most tokens of a micro-batch, the dtype to compute in and the
            process; see ``accumulate_gradients``.
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
                lambda batch: gradients(
                    model, batch, settings.micro_batch_tokens, dtype, self.process
                ),
                seed=seed,
                start=start,
                on_step=advance,
            )
        return steps
