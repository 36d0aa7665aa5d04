"""The steps of a completion, and the tokens that close them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

from reasonrl.answers import own_lines
from reasonrl.sampling.stops import UNFINISHED, decode
from reasonrl.types import Completion


def step_ends(text: str) -> list[int]:
    """The offset just after each step.

    A step is a line that isn't blank, with its newline and the blank lines after it; blank lines
    at the very beginning belong to the first. The last step ends where the text does, or where a
    line begins with ``Q:``, the model's own next question. A text without a step gives [].
    """
    starts: list[int] = []
    end = 0
    for offset, line in own_lines(text):
        end = min(offset + len(line) + 1, len(text))
        if line.strip():
            starts.append(offset)
    return [*starts[1:], end] if starts else []


def closing_tokens(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ends: Sequence[int]
) -> list[int]:
    """For each offset of the decoded text, the index of the token that completes what precedes it.

    The first token up to which the ids decode to that many characters, one in part not counted;
    the last token if none does. Found by bisection, without encoding any text: the text needn't
    encode to the ids that were sampled. ``token_ids`` must not be empty if ``ends`` isn't.
    """

    @cache
    def length(last: int) -> int:
        return len(decode(tokenizer, token_ids[: last + 1]).rstrip(UNFINISHED))

    return [bisect_left(range(len(token_ids) - 1), end, key=length) for end in ends]


def step_tokens(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> list[int]:
    """The index of the last token of each step, ascending, each once: one token may end two steps.

    A step that ends with the text ends with the last token, be that EOS.
    """
    ends = step_ends(completion.text)
    closing = closing_tokens(tokenizer, completion.token_ids, ends)
    if ends and ends[-1] == len(completion.text):
        closing[-1] = len(completion.token_ids) - 1
    return sorted({*closing})
