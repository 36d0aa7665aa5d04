"""Prompts that are a text: zero-shot, or few-shot with exemplars in front.

    Q: {question}            an exemplar; its solution ends before the delimiter
    A: {solution}

    Q: {question}
    A:                       the completion starts here

A completion's text starts with a space, so that tokenizers see ``A: 12`` as they would in running
text. Prompt and completion are tokenized apart and joined as ids, never again as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.problems.prompts.base import PromptForm, encode
from reasonrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXEMPLAR_SEPARATOR = "\n\n"


def solution_text(problem: Problem) -> str:
    """The reference solution as it continues the problem's prompt."""
    return f" {problem.solution}"


@dataclass(frozen=True)
class Plain(PromptForm):
    """A text, which the completion continues. EOS ends it."""

    template: str  # it ends where the completion starts

    def prompt_ids(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        exemplars: Sequence[Problem] = (),
    ) -> list[tuple[int, ...]]:
        shown = "".join(self.asked(e) + solution_text(e) + EXEMPLAR_SEPARATOR for e in exemplars)
        return encode_beginnings([shown + self.asked(p) for p in problems], tokenizer)

    def reference_ids(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, ...]]:
        encoded = encode(map(solution_text, problems), tokenizer)
        return [(*ids, self.end_token(tokenizer)) for ids in encoded]

    def end_token(self, tokenizer: PreTrainedTokenizerBase) -> int:
        eos: int = tokenizer.eos_token_id
        return eos


def encode_beginnings(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """The token ids of texts that go on: with BOS in front, where the tokenizer adds it.

    What the tokenizer adds behind them, such as EOS, is left out.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True)
    beginnings = []
    for ids, added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while end and added[end - 1]:
            end -= 1
        beginnings.append(tuple(ids[: end or len(ids)]))
    return beginnings
