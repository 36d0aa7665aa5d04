"""A question and what a policy answered, as people read it."""

from __future__ import annotations

from textwrap import indent

from reasonrl.types import Problem, Rollout

MAX_CHARACTERS = 800  # of a question, and of a completion


def transcript(problem: Problem, rollout: Rollout) -> str:
    """The question, the completion, and the verdict on it, on lines of their own."""
    answer, completion = rollout.answer or "none", rollout.completion
    verdict = "right" if rollout.correct else "wrong"
    ended = "cut off" if completion.finish_reason == "length" else "whole"
    return "\n".join(
        [
            f"{problem.id}: {_shortened(problem.question)}",
            indent(_shortened(completion.text), "  | ", lambda _: True),
            f"  answer {answer}, {verdict} (gold {problem.answer}); score {rollout.score:g}; "
            f"{len(completion.token_ids)} tokens, {ended}",
        ]
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"
