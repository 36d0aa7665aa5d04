"""The trainer of a policy that learns from its own rollouts: steps, checkpoints, the best one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig, validates_after
from reasonrl.job import Job
from reasonrl.learning.supervised import num_steps
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.policy_gradient.actor_critic import ActorCritic, ReadReference, Reference
from reasonrl.policy_gradient.experience import Experience, Moments, token_data
from reasonrl.runs.preemption import saving
from reasonrl.sampling import Engine
from reasonrl.util.atomic import remove_folder
from reasonrl.util.errors import UserError


@dataclass
class State:
    """How far a run is: what a checkpoint holds beside weights, optimizer and experience."""

    kl_coef: float  # β, which kl_target adapts
    iteration: int = 0  # the last one that was sampled; 0 before the first
    sampled: int = 0  # completions so far
    validated: int = -1  # the last iteration that was validated
    taken: int = 0  # optimizer steps taken in this iteration
    scores: Moments = field(default_factory=Moments)  # of all rollouts learnt from
    best: int = 0  # the iteration after which the policy was best, by validation
    best_validation: float = -math.inf  # that policy's maj@1

    @classmethod
    def read(cls, saved: dict[str, Any]) -> State:
        """The state in a checkpoint; older checkpoints hold more fields, which are left out."""
        own = {one.name: saved[one.name] for one in fields(cls)}
        return cls(**own | {"scores": Moments(**own["scores"])})


class Trainer:
    """Holds a job's policy, its value function and its reference, and all a kill must not lose."""

    def __init__(self, job: Job, config: PPOConfig, model: ActorCritic) -> None:
        """Makes the reference policy and the optimizer.

        model: the policy with its value function, which several processes now share out.
        """
        self.job, self.config, self.model = job, config, model
        self._reference_hash = job.weights_hash(model.policy)
        job.shard(model)
        self.reference = self._make_reference()
        groups = model.groups(config)
        self._groups = list(groups)
        self._steps_per_iteration = num_steps(config.rollouts_per_iteration, config)
        self.optimization = job.optimization(
            model,
            list(groups.values()),
            config,
            config.iterations * self._steps_per_iteration,
            "checkpoints",
        )
        self._engine: Engine | None = None  # opened when it is first needed
        self.state = State(config.kl_coef)

    def _make_reference(self) -> ReadReference:
        if self.config.trainable == "lora":
            return self.model.without_adapters
        if self.job.process.mesh is None:
            return Reference(self.model.frozen_policy(), self.model.layout)
        reference = Reference(self.job.learner(self.job.init).model, self.model.layout)
        self.job.shard(reference)
        return reference

    @property
    def steps(self) -> int:
        """The number of optimizer steps so far, in all iterations."""
        return self.optimization.steps

    @property
    def is_over(self) -> bool:
        """Whether all iterations are made, or too many validations in a row weren't better."""
        state, config = self.state, self.config
        worse = (state.validated - state.best) // config.validate_every
        return state.iteration >= config.iterations or (
            config.patience is not None and worse >= config.patience
        )

    def resume(self) -> dict[str, Tensor]:
        """Loads the latest checkpoint; returns the tokens of the experience it was learning from.

        They are empty if it was in the midst of none. Raises UserError if the policy that the run
        started from has changed since.
        """
        saved, experience = self.optimization.resume()
        if saved:
            if saved["reference_hash"] != self._reference_hash:
                raise UserError(
                    f"init={self.job.init} must hold the policy that the run began with; its "
                    f"weights have changed since {self.job.work} was written. Restore them, or "
                    "delete that folder."
                )
            # Before variants there were as many completions in each iteration.
            count = saved["state"]["iteration"] * self.config.rollouts_per_iteration
            self.state = State.read({"sampled": count, **saved["state"]})
        return experience

    def begin_iteration(self, num_rollouts: int) -> None:
        """Counts an iteration's rollouts, none of which is learnt from yet."""
        self.state.iteration += 1
        self.state.sampled += num_rollouts
        self.state.taken = 0

    def save_if_due(self, experience: Sequence[Experience] = ()) -> None:
        """Saves at a boundary if it is time, see ``Optimization.save_if_due``.

        experience: what is being learnt from.
        """
        self.optimization.save_if_due(partial(self.save, experience))

    def save(self, experience: Sequence[Experience] = ()) -> None:
        """Saves a checkpoint."""
        self.optimization.save(
            {"state": asdict(self.state), "reference_hash": self._reference_hash},
            token_data(experience) if experience else None,
        )

    def step(self) -> dict[str, float]:
        """Takes an optimizer step with the accumulated gradients; returns its metrics.

        They are each group's gradient norm before clipping, and the learning rate. Raises UserError
        if gradients aren't finite, and then leaves the weights as they were.
        """
        learning_rate = self.optimization.learning_rate
        norms = zip(self._groups, self.optimization.step(), strict=True)
        self.state.taken += 1
        return {
            **{f"pg/{group}_grad_norm": norm for group, norm in norms},
            "pg/learning_rate": learning_rate,
        }

    def end_iteration(
        self, experience: Sequence[Experience], sampling: float, learning: float
    ) -> None:
        """Logs the iteration's times, and takes the learning rates to where the iteration ends.

        An iteration that stopped early, or had less to learn from, took fewer steps than planned.

        sampling, learning: the seconds that each took.
        """
        num_tokens = sum(one.num_tokens for one in experience)
        times = {
            "pg/steps": self.state.taken,
            "time/sampling_share": sampling / (sampling + learning),
            "time/learning_share": learning / (sampling + learning),
            "time/tokens_per_second": num_tokens / (sampling + learning),
        }
        self.job.log.log(self.steps, times)
        self.optimization.skip_to(self.state.iteration * self._steps_per_iteration)

    def validate_if_due(self) -> None:
        """Validates before the first iteration, after every ``validate_every``, and at the end."""
        state = self.state
        if validates_after(self.config, state.iteration) and state.validated < state.iteration:
            with saving(self.save):
                self.validate()
            state.validated = state.iteration

    def validate(self) -> None:
        """Logs maj@1 on the validation questions, and keeps the policy if it is the best so far.

        The starting policy is never kept, and of equally good policies the earlier one is.
        """
        job, state, policy = self.job, self.state, self._policy()
        with self._sampler_of(policy) as sampler:
            accuracy = job.accuracy(
                sampler,
                job.validation,
                few_shot=job.few_shot,
                file=job.run.evaluation / "validation" / f"iteration-{state.iteration:05d}.parquet",
                description=f"iteration {state.iteration}: validation",
            )
        accuracy = job.process.broadcast(accuracy)
        job.log.log(self.steps, {"pg/rollouts": state.sampled, "eval/validation_maj@1": accuracy})
        if state.iteration and accuracy > state.best_validation:
            state.best, state.best_validation = state.iteration, accuracy
            job.process.first(lambda: self._keep(policy))

    def _keep(self, policy: Policy) -> None:
        """Saves the policy, and removes the one that was the best before."""
        save_policy(policy, self._best(), self.job.config.model.compute_dtype)
        for other in set(self.job.work.glob("policy-*")) - {self._best()}:
            remove_folder(other)

    def finish(self) -> None:
        """Makes the best policy that of the run."""
        self.job.process.first(lambda: self._best().rename(self.job.run.policy))

    def _best(self) -> Path:
        return self.job.work / f"policy-{self.state.best}"

    def sampler(self) -> AbstractContextManager[Engine]:
        """The run's engine, loaded with the policy as it is now."""
        return self._sampler_of(self._policy())

    @contextmanager
    def _sampler_of(self, policy: Policy) -> Iterator[Engine]:
        """The one engine of the run, which holds no weights while the policy learns."""
        if self._engine is None:
            self._engine = self.job.sampler(policy)
        else:
            self._engine.refresh(policy.model)
        try:
            yield self._engine
        finally:
            self._engine.release()

    def _policy(self) -> Policy:
        return Policy(self.model.in_use(self.job.config.model.compute_dtype), self.job.tokenizer)
