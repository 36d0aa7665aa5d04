"""What every sampling engine takes and gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    temperature: logits are divided by it; 0 = greedy, one sample per prompt. There is no top-k and
        no top-p: importance ratios in training need every token's probability under the policy, and
        a truncated support makes some of them 0.
    stop: delimiters that end a completion and are never part of it. Matched against decoded text,
        so one may span several tokens or begin inside one; special tokens have no text there.
    step_label: ids that are put before each step of a completion (``steps.ends_step``) for the
        policy to read, and are no part of the completion.
    step_delimiter: what ends a step, where there is a label to put before the next.
    """

    num_samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    step_label: tuple[int, ...] = ()
    step_delimiter: str = ""

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
    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Completions ordered by prompt, then by sample index.

        The same prompts, parameters and seed give the same completions. on_progress(n) is called
        as n further completions are finished.
        """
        ...
