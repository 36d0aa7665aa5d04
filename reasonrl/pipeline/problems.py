"""What a plan finds in its problems that makes numbers mean less than they seem to.

A question in two splits is learnt from and then asked; one with two gold answers can't be answered
right each time; a reference solution that completions can't be like, being longer or cut off by
``dataset.stop``, is learnt in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.grading import grader_of
from reasonrl.pipeline.plan import Plan
from reasonrl.problems.prompts import build_prompts, form_of, solution_text
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 0.5  # of the solutions: from there on what is measured means nothing


def shared_questions(planned: Plan) -> Iterator[str]:
    """A warning for each two splits with a question in common, whatever its spaces."""
    split = planned.config.evaluation.split
    known = {"train": planned.train, "validation": [*planned.exemplars, *planned.validation]}
    pairs = [("train", "validation")]
    if split not in known:
        known[split] = planned.test
        pairs += [("train", split), ("validation", split)]
    for one, other in pairs:
        seen = {_words(problem): problem.id for problem in known[one]}
        shared = [(seen[_words(p)], p.id) for p in known[other] if _words(p) in seen]
        if shared:
            yield (
                f"{len(shared)} of {len(known[other])} questions of the split {other} are in the "
                f"split {one} too, the first as {shared[0][0]} and {shared[0][1]}. Remove them "
                "from one of the files"
            )


def contradictions(problems: Sequence[Problem]) -> Iterator[str]:
    """A warning if a question is there with several gold answers, whatever its spaces."""
    first: dict[str, Problem] = {}
    found = [
        (first[_words(one)].id, one.id)
        for one in problems
        if first.setdefault(_words(one), one).answer != one.answer
    ]
    if found:
        yield (
            f"{len(found)} of {len(problems)} problems have another gold answer than one with the "
            f"same question, the first {found[0][1]} than {found[0][0]}. Remove the wrong ones"
        )


def _words(problem: Problem) -> str:
    return " ".join(problem.question.split())


def learns_from_solutions(config: TrainConfig) -> bool:
    """Whether a run learns from reference solutions: without a reward there is nothing else."""
    return config.algorithm.makes == "policy" and config.algorithm.reads_reward == "nothing"


def stopped_solutions(planned: Plan) -> Iterator[str]:
    """A warning if solutions to learn from hold what ends every completion.

    Raises UserError if most of them do.
    """
    dataset, problems = planned.config.dataset, _references(planned)
    held = [p.id for p in problems if any(stop in solution_text(p) for stop in dataset.stop)]
    if held:
        yield _unless_most(
            len(held),
            len(problems),
            f"dataset.stop={dataset.stop} must be in no solution that is learnt from, for it ends "
            f"every completion; got {len(held)} of {len(problems)} that hold one, {held[0]} the "
            "first. Pass dataset.stop=[], or mend the solutions.",
        )


def stopped_answers(problems: Sequence[Problem], dataset: DatasetConfig) -> Iterator[str]:
    """A warning if ``dataset.stop`` ends completions in the midst of their answer.

    It is read from the reference solutions, which give answers in the form that the grader reads.

    Raises UserError if it ends most of them: nothing could be graded then.
    """
    grader, held = grader_of(dataset), []
    for problem in problems:
        text = solution_text(problem)
        given = [text[c.start : c.end] for c in grader.claims(text) if c.answer is not None]
        if given and any(stop in given[-1] for stop in dataset.stop):
            held.append(problem.id)
    if held:
        yield _unless_most(
            len(held),
            len(problems),
            f"dataset.stop={dataset.stop} must not be in an answer, which dataset.grader="
            f"{dataset.grader} reads from {grader.answer_form}; got {len(held)} of "
            f"{len(problems)} reference solutions whose answer holds one, {held[0]} the "
            "first. Pass dataset.stop=[].",
        )


def long_solutions(
    planned: Plan, tokenizer: PreTrainedTokenizerBase, context: int
) -> Iterator[str]:
    """A warning if solutions to learn from are longer than completions may be.

    Raises UserError if most of them are, or if one doesn't fit the context behind its prompt.
    """
    dataset, problems = planned.config.dataset, _references(planned)
    form = form_of(planned.config)
    prompts = build_prompts(problems, tokenizer, form)
    lengths = list(map(len, form.reference_ids(problems, tokenizer)))
    for problem, prompt, length in zip(problems, prompts, lengths, strict=True):
        if len(prompt.token_ids) + length > context:
            raise UserError(
                f"{problem.id} must fit the model's context of {context} tokens; got "
                f"{len(prompt.token_ids)} of its prompt and {length} of its solution. Leave it out "
                "of the training problems, or pass another model."
            )
    longer = [place for place, length in enumerate(lengths) if length > dataset.max_new_tokens]
    if longer:
        longest = max(longer, key=lengths.__getitem__)
        yield _unless_most(
            len(longer),
            len(problems),
            f"dataset.max_new_tokens={dataset.max_new_tokens} must let completions be as long as "
            f"the solutions that are learnt from; got {len(longer)} of {len(problems)} that are "
            f"longer, {problems[longest].id} the longest with {lengths[longest]} tokens. Raise it.",
        )


def _unless_most(number: int, among: int, text: str) -> str:
    """The text, as a warning. Raises UserError with it where it is of most of them."""
    if number > MOST * among:
        raise UserError(text)
    return text.rstrip(".")


def _references(planned: Plan) -> Sequence[Problem]:
    return planned.train[: planned.config.dataset.num_references]
