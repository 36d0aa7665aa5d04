"""The steps of a completion (``Grader.step_ends``): which tokens close and begin them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from reasonrl.grading.base import Grader
from reasonrl.grading.stops import UNFINISHED, decode
from reasonrl.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def closing_tokens(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """For each offset of the decoded text, the index of the token that completes what precedes it.

    It is the first token up to which the ids decode to that many characters, where a character that
    is there only in part doesn't count; it is the last token if no token does so. It is found by
    bisection, without encoding any text, for the text needn't encode to the ids that were sampled.
    ``token_ids`` must not be empty if ``ends`` isn't.
    """

    @cache
    def length(last: int) -> int:
        return len(decode(tokenizer, token_ids[: last + 1]).rstrip(UNFINISHED))

    return [bisect_left(range(len(token_ids) - 1), end, key=length) for end in ends]


def last_tokens(
    tokenizer: PreTrainedTokenizerBase, completion: Completion, grader: Grader
) -> list[int]:
    """The index of the last token of each step, in order; one token may end two steps.

    A step that ends with the text ends with the last token, even if that token is EOS.
    """
    ends = grader.step_ends(completion.text)
    closing = closing_tokens(tokenizer, completion.token_ids, ends)
    if ends and ends[-1] == len(completion.text):
        closing[-1] = len(completion.token_ids) - 1
    return closing


def step_tokens(
    tokenizer: PreTrainedTokenizerBase, completion: Completion, grader: Grader
) -> list[int]:
    """The tokens that end steps, ascending, each once: see ``last_tokens``."""
    return sorted({*last_tokens(tokenizer, completion, grader)})


def ends_step(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], delimiter: str) -> bool:
    """Whether a step that began with the first of ``token_ids`` has ended with the last of them.

    The step has ended once text that isn't blank is followed by ``delimiter``, so its end is known
    as soon as the delimiter is sampled.
    """
    return delimiter in decode(tokenizer, token_ids).lstrip()


def step_starts(
    tokenizer: PreTrainedTokenizerBase, completion: Completion, grader: Grader
) -> list[tuple[int, int]]:
    """Where a policy that acts step by step begins one: (index of the token, number of the step).

    The policy begins a step with the first token, and after each token that ends a step
    (``ends_step``). The number, in the order of ``step_tokens``, is that of the step to which the
    next text belongs; text after the last step counts to the last step. A completion without a step
    gives [].
    """
    closing, ids = step_tokens(tokenizer, completion, grader), completion.token_ids
    starts = [0] if closing else []
    for token in range(1, len(ids)):
        if starts and ends_step(tokenizer, ids[starts[-1] : token], grader.step_delimiter):
            starts.append(token)

    def number(start: int) -> int:
        rest = range(start, len(ids))
        with_text = (t for t in rest if decode(tokenizer, ids[start : t + 1]).strip())
        return bisect_left(closing, next(with_text, len(ids)))

    return [(start, min(number(start), len(closing) - 1)) for start in starts]
