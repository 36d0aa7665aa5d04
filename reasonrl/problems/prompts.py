"""Problems to prompts: zero-shot, or few-shot with exemplars in front.

    Q: {question}            an exemplar; its solution ends before the delimiter
    A: {solution}

    Q: {question}
    A:                       the completion starts here

A completion's text starts with a space, so that tokenizers see ``A: 12`` as they would in running
text. Prompt and completion are tokenized apart and joined as ids, never again as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from reasonrl.types import Problem, Prompt
from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXEMPLAR_SEPARATOR = "\n\n"


def solution_text(problem: Problem) -> str:
    """The reference solution as a completion of the problem's prompt."""
    return f" {problem.solution}"


def build_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    exemplars: Sequence[Problem] = (),
) -> list[Prompt]:
    """One prompt for each problem, in order.

    template: text with ``{question}`` in it, ending where the completion starts.
    exemplars: solved problems put before each question; they must not be among ``problems``.

    Raises UserError if an exemplar is also asked, or the tokenizer doesn't know a word.
    """
    asked = {problem.question: problem.id for problem in problems}
    shown = "".join(
        template.replace("{question}", e.question) + solution_text(e) + EXEMPLAR_SEPARATOR
        for e in exemplars
    )
    for exemplar in exemplars:
        if exemplar.question in asked:
            raise UserError(
                f"dataset.num_exemplars={len(exemplars)} must leave out the problems that are "
                f"asked; {exemplar.id} asks what {asked[exemplar.question]} does. Remove one of "
                "them from its file, or pass dataset.num_exemplars=0."
            )
    texts = [shown + template.replace("{question}", p.question) for p in problems]
    prompts = [
        Prompt(problem.id, ids)
        for problem, ids in zip(problems, encode_beginnings(texts, tokenizer), strict=True)
    ]
    for prompt in prompts:
        check_known(prompt.token_ids, tokenizer, prompt.problem_id)
    return prompts


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


def encode_completions(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    """Reference texts as completions: their token ids, ended by EOS."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [(*ids, tokenizer.eos_token_id) for ids in encoded]


def label_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[int, ...]]:
    """The token ids of each return label, as plain text. Raises UserError for an unknown word."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        check_known(ids, tokenizer, f"the label {text}")
    return {text: tuple(ids) for text, ids in zip(texts, encoded, strict=True)}


def check_known(
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, problem_id: str
) -> None:
    """Raises UserError where the tokenizer had to replace a word by its unknown token."""
    unknown = tokenizer.unk_token_id
    # Byte-level tokenizers name an unknown token too, often EOS, but never need it.
    if unknown is not None and unknown != tokenizer.eos_token_id and unknown in token_ids:
        raise UserError(
            f"model must have a tokenizer that knows the dataset's words; got {problem_id}, which "
            "has some it doesn't. Pass model=smollm2-135m or any other general model."
        )


def check_lengths(prompts: Sequence[Prompt], max_new_tokens: int, context: int) -> None:
    """Raises UserError if a prompt and its completion don't fit in the model's context."""
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    length = len(longest.token_ids)
    if length + max_new_tokens > context:
        raise UserError(
            f"dataset.max_new_tokens={max_new_tokens} must fit after the prompt; got {length} "
            f"prompt tokens for {longest.problem_id} and a context of {context}. Lower "
            "dataset.max_new_tokens or dataset.num_exemplars, or pass another model."
        )
