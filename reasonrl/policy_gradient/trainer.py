"""What keeps a policy that learns from its own rollouts: steps, checkpoints, the best so far."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.job import Job
from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.learning.supervised import make_optimizer, num_steps
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.policy_gradient.actor_critic import ActorCritic
from reasonrl.policy_gradient.experience import Experience, Moments, token_data
from reasonrl.runs.preemption import boundary, saving
from reasonrl.sampling import Sampler
from reasonrl.util.atomic import remove_folder
from reasonrl.util.errors import UserError
from reasonrl.util.seeding import derive_seed


@dataclass
class State:
    """Where a run is: what a checkpoint holds beside weights, optimizer and experience.

    iteration: the last one explored; 0 before the first. taken: optimizer steps in it; steps: in
    all. validated: the last iteration validated.
    scores: of all rollouts learnt from. best: the iteration after which the policy was best, by
    validation.
    """

    kl_coef: float
    iteration: int = 0
    validated: int = -1
    taken: int = 0
    steps: int = 0
    scores: Moments = field(default_factory=Moments)
    best: int = 0
    best_validation: float = -math.inf


class Trainer:
    """A job's policy with its value function, its reference, and all that a kill must not lose."""

    def __init__(self, job: Job, config: PPOConfig) -> None:
        self.job, self.config = job, config
        self.model = ActorCritic.build(
            job.learner(job.init).model, config, derive_seed(job.config.seed, "ppo", "lora")
        )
        self.reference = self.model.reference()
        self._reference_hash = weights_hash(self.reference)
        self._steps_per_iteration = num_steps(config.rollouts_per_iteration, config)
        self._trained = (self.model.policy_parameters(), self.model.value_parameters())
        rates = (config.learning_rate, config.value_learning_rate)
        self._optimizer, self._scheduler = make_optimizer(
            [{"params": p, "lr": rate} for p, rate in zip(self._trained, rates, strict=True)],
            config,
            config.iterations * self._steps_per_iteration,
        )
        self._checkpoints = Checkpoints(job.work / "checkpoints")
        self._saved = time.monotonic()
        self.state = State(config.kl_coef)

    def resume(self) -> dict[str, Tensor]:
        """Goes on from the latest checkpoint; returns the experience that was in work, if any.

        Raises UserError if the policy that the run started from is another one now.
        """
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            self.job.log.rewind(0)
            return {}
        saved = checkpoint.restore(self.model, self._optimizer)
        if saved["reference_hash"] != self._reference_hash:
            raise UserError(
                f"init={self.job.init} must hold the policy that the run began with; its weights "
                f"have changed since {checkpoint.path}. Restore them, or delete {self.job.work}."
            )
        self._scheduler.load_state_dict(saved["scheduler"])
        self.job.log.rewind(saved["log_position"])
        self.state = State(**saved["state"] | {"scores": Moments(**saved["state"]["scores"])})
        return checkpoint.buffer()

    def save_if_due(self, experience: Sequence[Experience] = ()) -> None:
        """A checkpoint, if the last one is older than runtime.checkpoint_seconds.

        experience: what is being learnt from. Raises Preempted, with a checkpoint, if told to stop.
        """
        age = time.monotonic() - self._saved
        due = age >= self.job.config.runtime.checkpoint_seconds
        boundary(partial(self.save, experience), due=due)

    def save(self, experience: Sequence[Experience] = ()) -> None:
        """A checkpoint."""
        self._checkpoints.save(
            self.state.steps,
            model=self.model,
            optimizer=self._optimizer,
            state={
                "state": asdict(self.state),
                "scheduler": self._scheduler.state_dict(),
                "reference_hash": self._reference_hash,
                "log_position": self.job.log.position(),
            },
            buffer=token_data(experience) if experience else None,
        )
        self._saved = time.monotonic()

    def step(self) -> dict[str, float]:
        """An optimizer step with the gradients there are; returns their norms before clipping.

        Raises UserError if they aren't finite: the weights stay as they were.
        """
        policy_norm, value_norm = (
            clip_grad_norm_(parameters, self.config.max_grad_norm).item()
            for parameters in self._trained
        )
        if not math.isfinite(policy_norm + value_norm):
            raise UserError(
                f"algorithm.learning_rate={self.config.learning_rate} and value_learning_rate="
                f"{self.config.value_learning_rate} must keep gradients finite; got {policy_norm} "
                f"of the policy and {value_norm} of the value function in iteration "
                f"{self.state.iteration}. Lower the one, or the other."
            )
        learning_rate = self._scheduler.get_last_lr()[0]
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.state.steps += 1
        self.state.taken += 1
        return {
            "ppo/policy_grad_norm": policy_norm,
            "ppo/value_grad_norm": value_norm,
            "ppo/learning_rate": float(learning_rate),
        }

    def end_iteration(
        self, experience: Sequence[Experience], sampling: float, learning: float
    ) -> None:
        """Takes the learning rate to where the iteration ends.

        An iteration that stopped early, or had less to learn from, took fewer steps than planned.
        sampling, learning: seconds.
        """
        num_tokens = sum(one.num_tokens for one in experience)
        times = {
            "ppo/steps": self.state.taken,
            "time/sampling_share": sampling / (sampling + learning),
            "time/learning_share": learning / (sampling + learning),
            "time/tokens_per_second": num_tokens / (sampling + learning),
        }
        self.job.log.log(self.state.steps, times)
        with warnings.catch_warnings():  # of a schedule that steps before the optimizer: it may
            warnings.simplefilter("ignore")
            while self._scheduler.last_epoch < self.state.iteration * self._steps_per_iteration:
                self._scheduler.step()

    def validate_if_due(self) -> None:
        """Before the first iteration, after every ``validate_every`` and after the last."""
        state, config = self.state, self.config
        due = state.iteration % config.validate_every == 0 or state.iteration == config.iterations
        if due and state.validated < state.iteration:
            with saving(self.save):
                self.validate()
            state.validated = state.iteration

    def validate(self) -> None:
        """maj@1 on the validation questions; the policy is kept if it is the best that has learnt.

        The earlier of equals.
        """
        job, state, policy = self.job, self.state, self._policy()
        accuracy = job.accuracy(
            job.sampler_of(policy),
            job.validation,
            few_shot=job.few_shot,
            file=job.run.evaluation / "validation" / f"iteration-{state.iteration:05d}.parquet",
            description=f"iteration {state.iteration}: validation",
        )
        rollouts = state.iteration * self.config.rollouts_per_iteration
        job.log.log(state.steps, {"ppo/rollouts": rollouts, "eval/validation_maj@1": accuracy})
        if state.iteration and accuracy > state.best_validation:
            state.best, state.best_validation = state.iteration, accuracy
            save_policy(policy, self._best(), job.config.model.compute_dtype)
            for other in set(job.work.glob("policy-*")) - {self._best()}:
                remove_folder(other)

    def finish(self) -> None:
        """Makes the best policy the run's."""
        self._best().rename(self.job.run.policy)

    def _best(self) -> Path:
        return self.job.work / f"policy-{self.state.best}"

    def sampler(self) -> Sampler:
        """Of the policy as it is now."""
        return self.job.sampler_of(self._policy())

    def _policy(self) -> Policy:
        return Policy(self.model.in_use(self.job.config.model.compute_dtype), self.job.tokenizer)
