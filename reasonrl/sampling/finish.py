"""When a completion is finished, and what it then is: the same for every engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from reasonrl.grading.stops import Stops, decode
from reasonrl.sampling.base import SamplingParams
from reasonrl.types import Completion, FinishReason, Prompt
from reasonrl.util.errors import UserError


@lru_cache(maxsize=8)  # reads every token's text
def _make_stops(
    tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], vocab_size: int
) -> Stops:
    return Stops(tokenizer, stop, vocab_size)


@dataclass(frozen=True)
class Finish:
    """What finishes the completions of a tokenizer's model."""

    tokenizer: PreTrainedTokenizerBase
    own_ends: Collection[int]  # ``policy.ends.end_tokens`` of the model
    vocab_size: int
    params: SamplingParams

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a completion."""
        return frozenset({*self.own_ends, *self.params.end_tokens})

    @cached_property
    def stops(self) -> Stops:
        return _make_stops(self.tokenizer, self.params.stop, self.vocab_size)

    @property
    def worth_a_look(self) -> np.ndarray:
        """(V,) bool, the tokens that may end a completion, or a step where steps have a label."""
        worth = self.stops.may_end.copy()
        worth[list(self.ends)] = True
        if self.params.step_label:
            delimiter = (self.params.step_delimiter,)
            worth |= _make_stops(self.tokenizer, delimiter, self.vocab_size).may_end
        return worth

    def completion(
        self,
        problem_id: str,
        sample_index: int,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        *,
        full: bool,
    ) -> Completion | None:
        """The completion, or None if it isn't finished. full: whether more tokens have no room."""
        reason: FinishReason
        count = self.stops.cut(token_ids)
        if count is not None:
            token_ids, logprobs, reason = token_ids[:count], logprobs[:count], "stop"
        elif token_ids[-1] in self.ends:
            reason = "eos"
        elif full:
            reason = "length"
        else:
            return None
        text = decode(self.tokenizer, token_ids)
        return Completion(problem_id, sample_index, token_ids, logprobs, reason, text)


def check_room(prompts: Sequence[Prompt], params: SamplingParams, context: int, key: str) -> None:
    """Raises UserError if a prompt is empty, or leaves less than a completion of the context.

    key: the setting that the context comes from.
    """
    for prompt in prompts:
        length = len(prompt.token_ids)
        if not length:
            raise UserError(
                f"problem_id={prompt.problem_id} must have a prompt of at least one token; "
                f"got 0. Begin it with a BOS token."
            )
        left = context - length - len(params.step_label)
        if params.max_new_tokens > left:
            raise UserError(
                f"max_new_tokens={params.max_new_tokens} must be at most {max(left, 0)} after "
                f"the {length} prompt tokens of {prompt.problem_id}"
                + (f" and a label of {len(params.step_label)}" if params.step_label else "")
                + f"; got {key}={context}. Lower it or shorten the prompt."
            )
