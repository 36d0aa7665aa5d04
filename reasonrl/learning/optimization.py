"""The optimizer steps that all learners share: clipping, checks, learning rates, checkpoints.

Each learner has a loop of its own: ``supervised.fit`` goes over examples, and a policy gradient
over rollouts that it samples between its steps. What happens to gradients once they are computed,
and what a kill mustn't lose, is the same for all of them and stands here alone.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import get_scheduler

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.policy.shards import check_sharded
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.preemption import boundary
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.errors import UserError


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate, and whose gradients are clipped together."""

    parameters: list[nn.Parameter]
    learning_rate: float  # at its peak
    key: str = "learning_rate"  # the algorithm's setting that holds this learning rate


class Optimization:
    """The optimizer steps of one learner, with their checkpoints.

    The optimizer is AdamW. All learning rates rise linearly in a warm-up and then fall along a
    cosine, in the same proportion.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        settings: LearnerConfig,
        total_steps: int,
        *,
        name: str,
        checkpoints: Checkpoints,
        checkpoint_seconds: float,
        log: MetricsLog,
        process: Process = ALONE,
    ) -> None:
        """Sets up the optimizer and its schedule; ``resume`` then loads the latest checkpoint.

        model: the module whose weights checkpoints hold; the parameters of ``groups`` are among
            them.
        name: the algorithm's name.
        checkpoint_seconds: how old the last checkpoint may be before ``save_if_due`` saves another.
        log: the run's metrics, which ``resume`` rewinds to where the checkpoint was saved.
        process: one of those that take the steps together, with a share of the weights each.
        """
        if process.mesh is not None:
            check_sharded(model)
        self.model, self.settings, self.name, self.log = model, settings, name, log
        self.steps = 0  # taken so far
        self._groups = groups
        self._optimizer = AdamW(
            [{"params": group.parameters, "lr": group.learning_rate} for group in groups],
            lr=settings.learning_rate,  # whose share the final rate of each group is
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._scheduler = get_scheduler(
            "cosine_warmup_with_min_lr",
            self._optimizer,
            # The last of these steps is the one at the peak, and the last of all at the final rate.
            num_warmup_steps=max(1, round(settings.warmup_fraction * total_steps)),
            num_training_steps=total_steps,
            scheduler_specific_kwargs={"min_lr": settings.final_learning_rate},
        )
        self._checkpoints, self._checkpoint_seconds = checkpoints, checkpoint_seconds
        self._process = process
        self._saved = time.monotonic()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group in the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def step(self) -> list[float]:
        """Takes a step with the accumulated gradients; returns each group's norm before clipping.

        Raises UserError if they aren't finite, and then leaves the weights as they were.
        """
        norms = self._process.broadcast(  # what they decide, they decide everywhere
            [
                _whole(clip_grad_norm_(group.parameters, self.settings.max_grad_norm)).item()
                for group in self._groups
            ]
        )
        self._check_finite(norms)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.steps += 1
        return norms

    def _check_finite(self, norms: Sequence[float]) -> None:
        wrong = [(g, n) for g, n in zip(self._groups, norms, strict=True) if not math.isfinite(n)]
        if wrong:
            rates = " and ".join(f"algorithm.{g.key}={g.learning_rate}" for g, _ in wrong)
            found = " and ".join(f"{norm}" for _, norm in wrong)
            remedy = (
                f"Lower {'it' if len(wrong) == 1 else 'them'}."
                if self.steps
                else "The first step has nothing to do with it: check the weights that it began "
                "with, or pass model.compute_dtype=float32."
            )
            raise UserError(
                f"{rates} must keep gradients finite; got a norm of {found} in step "
                f"{self.steps + 1} of {self.name}. {remedy}"
            )

    def skip_to(self, step: int) -> None:
        """Takes the learning rates to where they are after ``step`` steps, if that is ahead."""
        with warnings.catch_warnings():  # torch warns of a schedule that steps by itself
            warnings.simplefilter("ignore")
            while self._scheduler.last_epoch < step:
                self._scheduler.step()

    def resume(self, log_start: int = 0) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Loads the latest checkpoint; returns its state and its buffer, both empty without one.

        All processes of the run load it together, and save together.

        log_start: the position of the log where this learner's lines begin. Without a checkpoint,
            the lines that a kill left behind it are removed.
        """
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            self.log.rewind(log_start)
            return {}, {}
        state = checkpoint.restore(self.model, self._optimizer)
        self._scheduler.load_state_dict(state["scheduler"])
        self.steps = checkpoint.step
        self.log.rewind(state["log_position"])
        return state, checkpoint.buffer()

    def save(
        self, state: Mapping[str, Any] | None = None, buffer: Mapping[str, Tensor] | None = None
    ) -> None:
        """Saves a checkpoint.

        state: what the loop needs to continue beside the number of steps, as JSON values.
        buffer: the tensors of the batch that the loop is in the midst of, if it is in one.
        """
        own = {"scheduler": self._scheduler.state_dict(), "log_position": self.log.position()}
        self._checkpoints.save(
            self.steps,
            model=self.model,
            optimizer=self._optimizer,
            state={**own, **(state or {})},
            buffer=buffer,
        )
        self._saved = time.monotonic()

    def save_if_due(self, save: Callable[[], None] | None = None) -> None:
        """Saves at a boundary between steps if the last checkpoint is older than it may be.

        save: what saves, instead of ``self.save``. Raises Preempted, after a checkpoint, if the
        process was told to stop.
        """
        due = time.monotonic() - self._saved >= self._checkpoint_seconds
        boundary(save or self.save, due=due, process=self._process)


def _whole(norm: Tensor) -> Tensor:
    """A norm that every process has its share of, in every process, together."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
