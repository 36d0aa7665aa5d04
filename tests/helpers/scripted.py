"""An engine that follows a script, and problems for it.

What the tests rely on `ScriptedSampler` for:

1. Completions come in the order of `Sampler.sample`: by prompt, then by sample index.
2. The script is asked with a problem's id and its visit: 0 the first time the problem is sampled,
   1 the next. Of the texts it gives, sample k gets number k, from the start again where they end.
3. A text becomes the tokenizer's ids and EOS; the completion's finish reason is ``eos``.
4. A stop string ends it as it ends a sampled one: the ids before it stay, without EOS; ``stop``.
5. A text longer than max_new_tokens loses the rest and its EOS; ``length``.
6. Every token's logprob is -0.5.
7. Each call is kept in `calls`, as (prompts, params, seed).
8. on_progress is called once for each prompt.
9. It stands in ``ENGINES`` for an engine: whoever opens one is given it, whatever the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from reasonrl.grading.stops import decode
from reasonrl.sampling import Engine, SamplingParams
from reasonrl.types import Completion, FinishReason, Problem, Prompt

Script = Callable[[str, int], Sequence[str]]


def problem(name: str, a: int, b: int) -> Problem:
    question = f"Ana has {a} apples. Then Ben gives Ana {b} apples."
    return Problem(name, question, str(a + b), f"{a}+{b}={a + b}\n#### {a + b}")


# Of runs with completions from a script.
TRAIN = [problem("t0", 2, 3), problem("t1", 4, 4), problem("t2", 1, 6)]
EXEMPLARS = [problem("x0", 9, 9), problem("x1", 8, 9)]
VALIDATION = [problem("v0", 1, 4), problem("v1", 1, 5)]


def opening(opened: Callable[..., Any]) -> Any:
    """An entry of ``ENGINES`` that is opened by a function of what ``Engine.open`` is given."""
    return SimpleNamespace(open=opened)


class ScriptedSampler(Engine):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, script: Script) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.calls: list[tuple[list[Prompt], SamplingParams, int]] = []
        self._visits: Counter[str] = Counter()

    def open(self, *_: Any, **__: Any) -> Self:  # type: ignore[override]
        return self

    def refresh(self, *_: Any) -> None:
        pass

    def release(self) -> None:
        pass

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int = 0,  # noqa: ARG002 (a script draws nothing)
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        self.calls.append((list(prompts), params, seed))
        completions = []
        for prompt in prompts:
            texts = self.script(prompt.problem_id, self._visits[prompt.problem_id])
            self._visits[prompt.problem_id] += 1
            for k in range(params.num_samples_per_prompt):
                text = texts[k % len(texts)]
                completions.append(self._completion(prompt.problem_id, k, text, params))
            if on_progress is not None:
                on_progress(params.num_samples_per_prompt)
        return completions

    def _completion(
        self, problem_id: str, sample_index: int, text: str, params: SamplingParams
    ) -> Completion:
        reason: FinishReason = "eos"
        for stop in params.stop:
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [self.tokenizer.eos_token_id] if reason == "eos" else []
        if len(ids) > params.max_new_tokens:
            ids, reason = ids[: params.max_new_tokens], "length"
        return Completion(
            problem_id=problem_id,
            sample_index=sample_index,
            token_ids=tuple(ids),
            logprobs=(-0.5,) * len(ids),
            finish_reason=reason,
            text=decode(self.tokenizer, ids),
        )
