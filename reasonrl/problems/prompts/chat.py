"""Prompts that are a chat, as the chat template of the tokenizer writes it.

    system: {system}         where there is one
    user: {question} …       an exemplar
    assistant: {solution}
    user: {question} …
    assistant:               the completion starts here

The template's text is encoded as it is: what it has of BOS is all there is. A reference solution
is what the template writes of it behind the prompt, up to the token that ends the turn, for a
policy that chats writes it like that. Not all templates write the same beginning whether or not an
answer follows (some open a thought that they then leave out); under such a one the solution and
the end of the turn are put behind the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonrl.problems.prompts.base import PromptForm, encode
from reasonrl.types import Problem
from reasonrl.util.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, str]]

ANSWER = "an answer that no template holds"  # stands in for one, to find what ends a turn


@dataclass(frozen=True)
class Chat(PromptForm):
    """Turns of a chat. The token with which the template ends a turn ends a completion."""

    template: str  # of what the user says
    system: str | None
    template_args: dict[str, Any] | None

    def prompt_ids(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        exemplars: Sequence[Problem] = (),
    ) -> list[tuple[int, ...]]:
        shown = [turn for e in exemplars for turn in (*self._question(e), _answer(e.solution))]
        chats = [[*self._opening(), *shown, *self._question(p)] for p in problems]
        rendered = self._render(tokenizer, chats, tokenize=True, add_generation_prompt=True)
        return [tuple(ids) for ids in rendered]

    def reference_ids(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, ...]]:
        end = self.end_token(tokenizer)
        references = []
        for problem, ids in zip(problems, self._rendered_answers(problems, tokenizer), strict=True):
            if ids is None:
                (ids,) = encode([problem.solution], tokenizer)
            if end in ids:
                ids = ids[: len(ids) - ids[::-1].index(end) - 1]
            references.append((*ids, end))
        return references

    def end_token(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The first special token behind an answer; EOS where the template writes none there."""
        chat = [{"role": "user", "content": "?"}, _answer(ANSWER)]
        (text,) = self._render(tokenizer, [chat], tokenize=False)
        added = tokenizer.added_tokens_decoder.items()
        special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        (behind,) = encode([text.partition(ANSWER)[2]], tokenizer)
        end: int = next((i for i in behind if i in special), tokenizer.eos_token_id)
        return end

    def renders_answers(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the template writes the prompt, and its solution behind that."""
        return self._rendered_answers([problem], tokenizer) != [None]

    def _rendered_answers(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, ...] | None]:
        """What the template writes of each solution; None where it isn't behind the prompt."""
        chats = [[*self._opening(), *self._question(p), _answer(p.solution)] for p in problems]
        prompts = self.prompt_ids(problems, tokenizer)
        wholes = [tuple(ids) for ids in self._render(tokenizer, chats, tokenize=True)]
        return [
            whole[len(prompt) :] if whole[: len(prompt)] == prompt else None
            for prompt, whole in zip(prompts, wholes, strict=True)
        ]

    def _opening(self) -> Turns:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _question(self, problem: Problem) -> Turns:
        return [{"role": "user", "content": self.asked(problem)}]

    def _render(
        self, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Turns], **how: Any
    ) -> list[Any]:
        """What the template makes of each chat: texts, or with ``tokenize=True`` token ids.

        Raises UserError if there is no template, if it doesn't know an argument, or if it fails.
        """
        arguments = self.template_args or {}
        if not tokenizer.chat_template:
            raise UserError(
                "prompt=chat must have a model whose tokenizer has a chat template; got "
                f"{tokenizer.name_or_path}, which has none. Pass prompt=plain."
            )
        try:
            template = tokenizer.get_chat_template()
            rendered: Any = tokenizer.apply_chat_template(
                list(chats), return_dict=False, **how, **arguments
            )
        except Exception as error:  # templates fail in ways of their own
            raise UserError(
                "prompt=chat must have a chat template that takes the run's turns; it fails with "
                f"{reason(error)}. Change prompt.system or prompt.template_args, or pass "
                "prompt=plain."
            ) from None
        for name in arguments:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise UserError(
                    f"prompt.template_args must hold variables of the model's chat template; got "
                    f"{name}, which it doesn't read. Remove it."
                )
        return list(rendered)


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
