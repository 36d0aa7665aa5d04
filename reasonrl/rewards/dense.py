"""The dense heuristic: pay for calculating what the reference solution calculates.

The paper (section 3) rewards intermediate steps that match a reference solution; its rule is
unpublished, so this one is our own. It reads nothing but calculations, and pays each intermediate
result of the reference once. So that only calculating pays, a calculation must be

- true: exactly, or as the reference itself writes it (it may round);
- grounded: its operands are numbers of the question, results of true and grounded calculations
  before it, or those from which the reference calculates this result;
- news: its result is no operand and isn't known already, unless the reference calculates it from
  the same operands (``24 + 0 = 24`` is no news, nor is ``24 * 2 / 2 = 24``);
- early: before the first claim of an answer, and among the first 2n calculations if the reference
  has n, which bounds what trying out every pair of numbers can win.

A solution that takes another way than the reference is paid only where the two meet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from reasonrl.config.reward.dense import DenseConfig
from reasonrl.grading.answers import numerals, value_of
from reasonrl.grading.base import Calculation, Grader
from reasonrl.grading.steps import closing_tokens, step_tokens
from reasonrl.rewards.base import Materials, Reward, Sum
from reasonrl.rewards.sparse import Outcome
from reasonrl.types import Completion, Problem, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Verdict = Literal["pays", "repeats", "pays nothing"]


@lru_cache(maxsize=16)  # a problem's completions come one after another
def _reference(problem: Problem, grader: Grader) -> tuple[Calculation, ...]:
    return tuple(grader.calculations(problem.solution))


def _before_answer(text: str, grader: Grader) -> str:
    claims = grader.claims(text)
    return text[: claims[0].start] if claims else text


def _judged(
    text: str, problem: Problem, grader: Grader, *, ordered: bool
) -> Iterator[tuple[Calculation, Verdict]]:
    reference = _reference(problem, grader)
    payable = list(dict.fromkeys(calculation.result for calculation in reference))
    known = set(numerals(problem.question))
    paid: set[str] = set()
    for place, calculation in enumerate(grader.calculations(_before_answer(text, grader))):
        result, operands = calculation.result, sorted(numerals(calculation.expression))
        same = [sorted(numerals(c.expression)) for c in reference if c.result == result]
        sound = (
            place < 2 * len(reference)
            and (calculation in reference or value_of(calculation.expression) == Fraction(result))
            and known.union(*same).issuperset(operands)
        )
        news = operands in same or result not in known.union(operands)
        verdict: Verdict = "pays nothing"
        if sound and result in paid:
            verdict = "repeats"
        elif sound and news and result in payable:
            verdict = "pays"
            paid.add(result)
            if ordered:
                payable = payable[payable.index(result) + 1 :]
        if sound:
            known.update(numerals(result))
        yield calculation, verdict


def paid_calculations(
    text: str, problem: Problem, grader: Grader, *, ordered: bool = False
) -> list[Calculation]:
    """The calculations of a completion that pay, in order, no two with the same result.

    ordered: a result pays only if the reference reaches it later than all that were paid before.
    A problem whose reference has no calculation pays nothing.
    """
    judged = _judged(text, problem, grader, ordered=ordered)
    return [calculation for calculation, verdict in judged if verdict == "pays"]


def step_fractions(
    text: str, problem: Problem, grader: Grader, *, ordered: bool = False
) -> list[tuple[int, float]]:
    """The offset just after each calculation that pays, and its share of the reference.

    Each calculation is worth one over the number of distinct intermediate results of the reference,
    so that the reference itself gets 1 and nothing more.
    """
    paid = paid_calculations(text, problem, grader, ordered=ordered)
    count = len({calculation.result for calculation in _reference(problem, grader)})
    return [(calculation.end, 1 / count) for calculation in paid]


def wrong_places(text: str, problem: Problem, grader: Grader) -> list[int]:
    """The offset just after each thing that is wrong by the reference, in no order.

    A calculation is wrong if it doesn't pay (in any order; to repeat one that did is right), and a
    claim if its answer isn't the gold answer; calculations after the first claim aren't looked at.

    This is for datasets whose problems have essentially one right trace: it calls another right way
    of solving the problem wrong.
    """
    judged = _judged(text, problem, grader, ordered=False)
    wrong = [calculation.end for calculation, verdict in judged if verdict == "pays nothing"]
    return wrong + [
        claim.end for claim in grader.claims(text) if not grader.equal(claim.answer, problem.answer)
    ]


def first_wrong_step(text: str, problem: Problem, grader: Grader) -> int | None:
    """The number, in the order of ``step_ends``, of the first step with something wrong in it.

    What is wrong is said by ``wrong_places``. If nothing is wrong but the answer never comes, it is
    the last step, or 0 if there is no step. It is None if nothing is wrong and the answer is right.
    """
    wrong, ends = wrong_places(text, problem, grader), grader.step_ends(text)
    if wrong:
        return bisect_left(ends, min(wrong))
    return max(len(ends) - 1, 0) if grader.answer(text) is None else None


@dataclass(frozen=True)
class ReferenceSteps:
    """``weight`` times the share of the reference's intermediate results that are calculated.

    The reward of a calculation that pays (``step_fractions``) is on the token that closes it.
    """

    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    weight: float
    ordered: bool  # whether results pay only in the reference's order

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[tuple[float, ...]]:
        """One reward for each token of each completion, whose problem is at the same place."""
        return [self._of(c, p) for c, p in zip(completions, problems, strict=True)]

    def _of(self, completion: Completion, problem: Problem) -> tuple[float, ...]:
        rewards = [0.0] * len(completion.token_ids)
        paid = step_fractions(completion.text, problem, self.grader, ordered=self.ordered)
        ends = [end for end, _ in paid]
        closing = closing_tokens(self.tokenizer, completion.token_ids, ends)
        for token, (_, fraction) in zip(closing, paid, strict=True):
            rewards[token] += self.weight * fraction
        return tuple(rewards)

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """1 for each step with nothing wrong in it by the reference solution, else 0."""
        judged = [
            self._right_steps(r.completion, p) for r, p in zip(rollouts, problems, strict=True)
        ]
        if on_progress:
            on_progress(len(rollouts))
        return judged

    def _right_steps(self, completion: Completion, problem: Problem) -> list[float]:
        closing = step_tokens(self.tokenizer, completion, self.grader)
        places = wrong_places(completion.text, problem, self.grader)
        wrong = closing_tokens(self.tokenizer, completion.token_ids, places)
        steps = {bisect_left(closing, token) for token in wrong}
        return [float(number not in steps) for number in range(len(closing))]


def build(settings: DenseConfig, materials: Materials) -> Reward:
    """The reward that these settings describe."""
    grader = materials.grader
    steps = ReferenceSteps(materials.tokenizer, grader, settings.step_weight, settings.ordered)
    return Sum((Outcome(grader, settings.outcome_weight), steps))
