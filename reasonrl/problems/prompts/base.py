"""What every form of a prompt gives, and how texts become token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from reasonrl.config.base import undeclared
from reasonrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptForm:
    """The base of all forms: how a policy is asked, and how an answer that it is shown ends.

    Every concrete subclass declares what ``DECLARATIONS`` names; a missing declaration raises
    TypeError when the subclass is defined. A form is a dataclass of plain values, as which a reward
    model keeps it.
    """

    template: str  # of the question, with ``{question}`` in it

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        missing = undeclared(cls, PromptForm, DECLARATIONS)
        if missing:
            raise TypeError(f"prompt {cls.__name__} must declare {', '.join(missing)}")

    def asked(self, problem: Problem) -> str:
        """The template with the problem's question in it."""
        return self.template.replace("{question}", problem.question)

    def prompt_ids(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        exemplars: Sequence[Problem] = (),
    ) -> list[tuple[int, ...]]:
        """The token ids of each problem's prompt, after ``exemplars``, which are solved.

        Raises UserError if the tokenizer can't be asked in this form.
        """
        raise NotImplementedError

    def reference_ids(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, ...]]:
        """Each reference solution as a completion of its problem's prompt, ``end_token`` last."""
        raise NotImplementedError

    def end_token(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The token that ends a completion which is learnt from: the policy learns to say it."""
        raise NotImplementedError


DECLARATIONS = ("prompt_ids", "reference_ids", "end_token")


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """The token ids of texts that go on from others: nothing is added to them."""
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
