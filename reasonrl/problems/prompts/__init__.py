"""Problems to prompts: ``build_prompts(problems, tokenizer, form_of(config))``.

A form says what a prompt is: a text (``plain``) or a chat (``chat``). Prompt and completion are
token ids from here on, and joined as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reasonrl.config import prompt as declared
from reasonrl.config.base import check_listed
from reasonrl.config.schema import EvaluateConfig
from reasonrl.grading import GRADERS
from reasonrl.problems.prompts.base import PromptForm, encode
from reasonrl.problems.prompts.chat import Chat
from reasonrl.problems.prompts.plain import Plain, solution_text
from reasonrl.types import Problem, Prompt
from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Chat",
    "Plain",
    "PromptForm",
    "build_prompts",
    "check_known",
    "check_lengths",
    "form_of",
    "label_ids",
    "solution_text",
]

FORMS: dict[str, Callable[..., PromptForm]] = {"plain": Plain, "chat": Chat}
check_listed("prompt", declared.PROMPTS, FORMS)
INSTRUCTION = "{instruction}"  # in a template: how the dataset's grader wants the answer


def form_of(config: EvaluateConfig) -> PromptForm:
    """The form that ``config.prompt`` names, of the dataset's template.

    Raises UserError if the template asks for the instruction of a grader that has none.
    """
    values, dataset = asdict(config.prompt), config.dataset
    template, instruction = dataset.prompt, GRADERS[dataset.grader].instruction
    if INSTRUCTION in template:
        if instruction is None:
            raise UserError(
                f"dataset.prompt must say itself how an answer is written: grader={dataset.grader} "
                f"has no {INSTRUCTION}. Write it in its place: dataset.prompt=TEXT."
            )
        template = template.replace(INSTRUCTION, instruction)
    return FORMS[values.pop("name")](template, **values)


def plain_values(form: PromptForm) -> Any:
    """The form as plain values, of which ``form_from`` makes it again."""
    if isinstance(form, Plain):
        return form.template
    name = next(name for name, kind in FORMS.items() if kind is type(form))
    return {"name": name, **asdict(form)}  # type: ignore[call-overload]


def form_from(values: Any) -> PromptForm:
    """The form of ``plain_values``. Raises KeyError or TypeError for other values."""
    if isinstance(values, str):
        return Plain(values)
    rest = dict(values)
    return FORMS[rest.pop("name")](**rest)


def build_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm,
    exemplars: Sequence[Problem] = (),
) -> list[Prompt]:
    """One prompt for each problem, in order.

    exemplars: solved problems put before each question; they must not be among ``problems``.

    Raises UserError if an exemplar is also asked, the tokenizer doesn't know a word, or it can't be
    asked in this form.
    """
    asked = {problem.question: problem.id for problem in problems}
    for exemplar in exemplars:
        if exemplar.question in asked:
            raise UserError(
                f"dataset.num_exemplars={len(exemplars)} must leave out the problems that are "
                f"asked; {exemplar.id} asks what {asked[exemplar.question]} does. Remove one of "
                "them from its file, or pass dataset.num_exemplars=0."
            )
    prompts = [
        Prompt(problem.id, ids)
        for problem, ids in zip(
            problems, form.prompt_ids(problems, tokenizer, exemplars), strict=True
        )
    ]
    for prompt in prompts:
        check_known(prompt.token_ids, tokenizer, prompt.problem_id)
    return prompts


def label_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[int, ...]]:
    """The token ids of each return label, as plain text. Raises UserError for an unknown word."""
    encoded = dict(zip(texts, encode(texts, tokenizer), strict=True))
    for text, ids in encoded.items():
        check_known(ids, tokenizer, f"the label {text}")
    return encoded


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
