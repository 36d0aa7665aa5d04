"""A reward of one's own: what a function in the user's file says of a completion.

score(problem, completion, answer) -> float | Sequence[float]

problem      the ``types.Problem``: its ``question``, gold ``answer`` and reference ``solution``
completion   the ``Written`` that the policy has sampled
answer       what the dataset's grader reads from it; None: nothing, or it was cut off
returns      a number for the whole completion, paid on its last token, or one for each of
             ``completion.steps``, each paid on the step's last token; at most 1 in sum
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from reasonrl.config.reward.base import LARGEST
from reasonrl.config.reward.function import FunctionConfig
from reasonrl.grading.base import Grader
from reasonrl.grading.steps import last_tokens
from reasonrl.rewards.base import Materials, Reward, Sum, TokenRewards
from reasonrl.rewards.sparse import Outcome, at_end, read_answer
from reasonrl.types import Completion, FinishReason, Problem, Rollout
from reasonrl.util.errors import UserError
from reasonrl.util.own_code import file_of, load_function, told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "reward.path"
ARGUMENTS = ("problem", "completion", "answer")
MOST = 1 + 1e-6  # of what it returns for a completion, rounding errors of a sum included


@dataclass(frozen=True)
class Written:
    """A completion, as a function that scores it sees it."""

    text: str
    steps: tuple[str, ...]  # the text of each step, by the grader: a line that isn't blank
    num_tokens: int  # with EOS, where that ended it
    finish_reason: FinishReason  # eos, stop (a stop string) or length (it was cut off)


@dataclass(frozen=True)
class Function:
    """``weight`` times what the function returns."""

    score: Callable[[Problem, Written, str | None], Any]
    code: str  # where it is: FILE.py:FUNCTION
    weight: float
    tokenizer: PreTrainedTokenizerBase
    grader: Grader

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        """One reward for each token of each completion, whose problem is at the same place.

        Raises UserError, with the problem, where the function raises or returns something else than
        it should.
        """
        return [self._of(c, p) for c, p in zip(completions, problems, strict=True)]

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """It judges none: what it returns for a step needn't lie between 0 and 1."""
        raise NotImplementedError

    def _of(self, completion: Completion, problem: Problem) -> TokenRewards:
        ends = self.grader.step_ends(completion.text)
        steps = tuple(completion.text[a:b] for a, b in zip([0, *ends], ends, strict=False))
        written = Written(
            completion.text, steps, len(completion.token_ids), completion.finish_reason
        )
        returned = self._returned(written, completion, problem)
        if isinstance(returned, float):
            return at_end(completion, self.weight * returned)
        rewards = [0.0] * len(completion.token_ids)
        closing = last_tokens(self.tokenizer, completion, self.grader)
        for token, reward in zip(closing, returned, strict=True):
            rewards[token] += self.weight * reward
        return tuple(rewards)

    def _returned(
        self, written: Written, completion: Completion, problem: Problem
    ) -> float | list[float]:
        """What the function returns for a completion, checked."""
        try:
            given = self.score(problem, written, read_answer(completion, self.grader))
        except (Exception, SystemExit) as error:
            raise self._wrong(problem, "score every completion", told(error, self.file)) from error
        given = given.tolist() if hasattr(given, "tolist") else given  # an array's or a tensor's
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        numbers = list(given) if is_list else [given]
        wanted, most = "", LARGEST / max(1.0, self.weight)
        if not all(isinstance(number, Real) for number in numbers):
            wanted = "return a number, or a list of one for each step"
        elif not all(-math.inf < number < math.inf for number in numbers):  # integers of any size
            wanted = "return finite numbers"
        elif any(abs(number) > most for number in numbers) or sum(map(abs, numbers)) > most:
            wanted = (
                f"return numbers whose sizes, times reward.function_weight={self.weight:g}, are "
                f"{LARGEST:.1e} together at most, which float32 holds"
            )
        elif is_list and len(numbers) != len(written.steps):
            wanted = f"return one number for each step, of which there are {len(written.steps)}"
        elif math.fsum(numbers) > MOST:
            wanted = "return at most 1, all steps together: raise reward.function_weight instead"
        if wanted:
            raise self._wrong(problem, wanted, f"{given!r:.100}")
        return [float(number) for number in numbers] if is_list else float(given)

    @property
    def file(self) -> str:
        return str(file_of(self.code))

    def _wrong(self, problem: Problem, what: str, got: str) -> UserError:
        return UserError(f"{KEY}={self.code} must {what}; got {got}, for {problem.id}.")


def build(settings: FunctionConfig, materials: Materials) -> Reward:
    """The reward that these settings describe. Raises UserError for a file that can't be used."""
    grader, code = materials.grader, str(settings.path)
    own = Function(
        load_function(code, KEY, ARGUMENTS),
        code,
        settings.function_weight,
        materials.tokenizer,
        grader,
    )
    steps, num = materials.steps, materials.num_continuations
    # The last part of a sum judges steps.
    return Sum((own, Outcome(grader, settings.outcome_weight, steps, num)))
