"""What every sampling engine takes and gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from transformers import PreTrainedModel

from reasonrl.config.base import undeclared
from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.policy.policy import Policy
from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    There is no top-k and no top-p: importance ratios in training need every token's probability
    under the policy, and a truncated support makes some of them 0.
    """

    num_samples_per_prompt: int
    temperature: float  # logits are divided by it; 0: greedy, with one sample per prompt
    max_new_tokens: int  # the most tokens of a completion
    # Delimiters that end a completion and are never part of it. They are matched against decoded
    # text, so one may span several tokens or begin inside one; special tokens have no text there.
    stop: tuple[str, ...] = ()
    # Token ids that are put before each step of a completion (``steps.ends_step``) for the policy
    # to read; they are no part of the completion.
    step_label: tuple[int, ...] = ()
    step_delimiter: str = ""  # what ends a step, where there is a label to put before the next one
    # Tokens that end a completion, beside the model's own (``policy.ends.end_tokens``).
    end_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key in ("num_samples_per_prompt", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1. Raise it.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature={self.temperature} must be finite and at least 0. "
                f"Take 0 for greedy decoding, 1 for the policy itself."
            )
        if self.temperature == 0 and self.num_samples_per_prompt != 1:
            raise UserError(
                f"num_samples_per_prompt={self.num_samples_per_prompt} must be 1 for greedy "
                f"decoding; got temperature=0. Raise the temperature or ask for one sample."
            )
        if "" in self.stop:
            raise UserError(f"stop={self.stop} must hold no empty text. Remove it.")
        if self.step_label and not self.step_delimiter:
            raise UserError(
                f"step_delimiter must say what ends a step; got step_label={self.step_label}. "
                "Take the grader's."
            )


class Sampler(Protocol):
    """Anything that gives completions."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Completions ordered by prompt, then by sample index.

        The same prompts, parameters and seed give the same completions.

        first: the place of the first prompt among those that it is one of, where others are sampled
            in another call: each prompt is sampled as in one call of them all.
        on_progress: is called with the number of completions that were just finished.
        """
        ...


class Engine:
    """The base of all engines: a ``Sampler`` that is opened once and then follows its policy.

    Every concrete subclass declares what ``DECLARATIONS`` names; a missing declaration raises
    TypeError when the subclass is defined.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = undeclared(cls, Engine, DECLARATIONS)
        if missing:
            raise TypeError(f"engine {cls.__name__} must declare {', '.join(missing)}")

    @classmethod
    def open(
        cls, source: str | Policy, settings: SamplerConfig, *, dtype: str, device: torch.device
    ) -> Self:
        """An engine of a policy.

        source: the policy's folder, from which the policy is read with weights of ``dtype``
            (float32, bfloat16) to ``device``; or the policy itself, which is used as it is.
        Raises UserError if there is no policy in the folder.
        """
        raise NotImplementedError

    def refresh(self, model: PreTrainedModel) -> None:
        """Goes on with the weights of ``model``, as the policy has learnt. The tokenizer stays."""
        raise NotImplementedError

    def release(self) -> None:
        """Frees the weights, whose memory learning may need; ``refresh`` brings new weights."""
        raise NotImplementedError

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See ``Sampler.sample``."""
        raise NotImplementedError


DECLARATIONS = ("open", "refresh", "release", "sample")
