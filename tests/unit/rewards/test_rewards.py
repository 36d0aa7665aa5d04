"""What a completion is paid, token by token: for its outcome, its steps, a reward model's verdict.

The completion in most tests is `` 2+3=5\\n5*4=20\\n#### 20`` and EOS: 19 tokens. Its calculations
end with tokens 5 and 12, its steps with 6, 13 (their newlines) and 18 (EOS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.config.reward.base import RewardConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.rewards import REWARDS, Materials, Reward
from reasonrl.rewards.base import Sum
from reasonrl.rewards.learned import Learned
from reasonrl.rewards.sparse import Outcome
from reasonrl.rewards.verdicts import grade
from reasonrl.runs.process import Process
from reasonrl.types import Completion, FinishReason, Problem, Prompt
from tests.helpers.grading import STRICT

PROBLEM = Problem("p", "Ana has 2 and 3 of 4 each.", "20", "2+3=5\n5*4=20\n#### 20")
RIGHT = " 2+3=5\n5*4=20\n#### 20"
SLIP = " 2+3=5\n5*4=22\n#### 22"


def completion(
    tokenizer: PreTrainedTokenizerBase, text: str, reason: FinishReason = "eos"
) -> Completion:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    ids += [tokenizer.eos_token_id] if reason == "eos" else []
    return Completion("p", 0, tuple(ids), (0.0,) * len(ids), reason, text)


def tokens(length: int, paid: Mapping[int, float]) -> Any:
    """Nothing on each of so many tokens, but for those named."""
    return pytest.approx([paid.get(token, 0.0) for token in range(length)], abs=1e-12)


def judging(tokenizer: PreTrainedTokenizerBase, *probabilities: Any) -> Any:
    """A reward model that finds these probabilities after each token of the completions."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        token_probabilities=lambda completions, _: [
            np.array(p[: len(c.token_ids)]) for c, p in zip(completions, probabilities, strict=True)
        ],
    )


def make_reward(settings: RewardConfig, tokenizer: PreTrainedTokenizerBase, model: Any) -> Reward:
    return REWARDS[settings.name](settings, Materials(tokenizer, STRICT, model, None, 0))


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("#### 20", "eos", [0.0, 0.0, 0.0, 0.0, 0.7]),  # "####", " ", "2", "0", EOS
        ("#### 20", "stop", [0.0, 0.0, 0.0, 0.7]),
        ("#### 20", "length", [0.0, 0.0, 0.0, 0.0]),  # 200 may have been to come
        ("#### 21", "eos", [0.0, 0.0, 0.0, 0.0, 0.0]),
        ("", "eos", [0.0]),
        ("", "stop", []),
    ],
)
def test_the_outcome_is_paid_on_the_last_token(
    text: str, reason: FinishReason, expected: list[float], tokenizer: PreTrainedTokenizerBase
) -> None:
    (rewards,) = Outcome(STRICT, 0.7)([completion(tokenizer, text, reason)], [PROBLEM])
    assert list(rewards) == expected


def test_rewards_add_up_token_by_token(tokenizer: PreTrainedTokenizerBase) -> None:
    def by_place(completions: Sequence[Completion], problems: Any) -> list[Any]:  # noqa: ARG001
        return [tuple(float(i) for i in range(len(c.token_ids))) for c in completions]

    answers = [completion(tokenizer, text, "stop") for text in ("#### 20", "#### 3", "")]
    both = Sum((Outcome(STRICT, 0.5), by_place, by_place))(answers, [PROBLEM] * 3)
    assert both == [(0.0, 2.0, 4.0, 6.5), (0.0, 2.0, 4.0), ()]


def test_the_sparse_reward_is_one_for_a_right_answer(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    reward = make_reward(configure("reward=sparse").reward, tokenizer, None)
    right, slip = reward([completion(tokenizer, t) for t in (RIGHT, SLIP)], [PROBLEM] * 2)
    assert right == tokens(19, {18: 1.0})
    assert slip == tokens(19, {})


def test_the_dense_reward_is_the_outcome_and_the_steps(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    config = configure("reward=dense", "reward.outcome_weight=0.8", "reward.step_weight=0.5").reward
    reward = make_reward(config, tokenizer, None)
    right, slip = reward([completion(tokenizer, t) for t in (RIGHT, SLIP)], [PROBLEM] * 2)
    assert right == tokens(19, {5: 0.25, 12: 0.25, 18: 0.8})  # half of 0.5 for each calculation
    assert slip == tokens(19, {5: 0.25})


def test_the_dense_reward_may_ask_for_the_reference_s_order(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    problem = Problem("p", "3 and 4, 2 and 6", "8", "3+4=7\n2+6=8\n#### 8")
    swapped = completion(tokenizer, " 2+6=8\n3+4=7\n#### 8")
    for ordered, paid in (("false", {5: 0.25, 11: 0.25}), ("true", {5: 0.25})):
        config = configure("reward=dense", f"reward.ordered={ordered}").reward
        (rewards,) = make_reward(config, tokenizer, None)([swapped], [problem])
        assert rewards == tokens(17, {16: 1.0} | paid)


@pytest.mark.parametrize("name", ["orm", "sorm"])
def test_a_learned_reward_is_the_outcome_and_the_verdict(
    name: str, configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    weights = ("reward.outcome_weight=0.6", "reward.model_weight=0.4", "reward.at=end")
    model = judging(tokenizer, [0.1] * 18 + [0.75], [0.5] * 19)
    reward = make_reward(configure(f"reward={name}", *weights).reward, tokenizer, model)
    right, slip = reward([completion(tokenizer, t) for t in (RIGHT, SLIP)], [PROBLEM] * 2)
    assert right == tokens(19, {18: 0.9})  # 0.6 + 0.4 x 0.75
    assert slip == tokens(19, {18: 0.2})  # 0.4 x 0.5


def test_a_learned_reward_needs_its_model(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="needs its reward model"):
        make_reward(configure("reward=orm").reward, tokenizer, None)


@pytest.mark.parametrize(
    ("at", "paid"),
    [
        ("end", {18: 0.3}),  # 0.5 x 0.6
        ("steps", {6: 1 / 30, 13: 2 / 15, 18: 0.1}),  # 0.5 / 3 x 0.2, 0.8 and 0.6
        ("differences", {6: 0.1, 13: 0.3, 18: -0.1}),  # 0.5 x (0.2, 0.8 - 0.2, 0.6 - 0.8)
    ],
)
def test_where_a_verdict_is_paid(
    at: str, paid: dict[int, float], tokenizer: PreTrainedTokenizerBase
) -> None:
    probabilities = [0.9] * 19  # what is between the steps doesn't count
    probabilities[6], probabilities[13], probabilities[18] = 0.2, 0.8, 0.6
    learned = Learned(judging(tokenizer, probabilities), 0.5, at, STRICT)
    (rewards,) = learned([completion(tokenizer, RIGHT)], [PROBLEM])
    assert rewards == tokens(19, paid)


@pytest.mark.parametrize(
    ("at", "eos_alone"), [("end", [0.2]), ("steps", [0.0]), ("differences", [0.0])]
)
def test_a_completion_without_a_step(
    at: str, eos_alone: list[float], tokenizer: PreTrainedTokenizerBase
) -> None:
    learned = Learned(judging(tokenizer, [0.4], []), 0.5, at, STRICT)
    completions = [completion(tokenizer, ""), completion(tokenizer, "", "stop")]
    assert list(map(list, learned(completions, [PROBLEM] * 2))) == [eos_alone, []]


@pytest.mark.parametrize("at", ["end", "steps", "differences"])
def test_a_verdict_is_worth_at_most_its_weight(at: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = "\n".join(rng.choice(["2+3=5", "5*4=20", "", "#### 20"], rng.integers(1, 8)))
        asked = completion(tokenizer, text, rng.choice(["eos", "stop"]))
        p = rng.choice([0.0, 1.0, rng.random()], len(asked.token_ids))
        (rewards,) = Learned(judging(tokenizer, p), 0.5, at, STRICT)([asked], [PROBLEM])
        assert len(rewards) == len(p)
        assert -1e-12 <= sum(rewards) <= 0.5 + 1e-12
        if at == "differences" and text.strip():
            assert sum(rewards) == pytest.approx(0.5 * p[-1])  # what lies between cancels


def test_processes_judge_steps_together_and_pay_completions_each_its_own(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    with_whom: list[tuple[Any, ...]] = []

    def token_probabilities(completions: Sequence[Completion], _: Any, *more: Any) -> Any:
        with_whom.append(more)
        return [np.zeros(len(c.token_ids)) for c in completions]

    model = SimpleNamespace(tokenizer=tokenizer, token_probabilities=token_probabilities)
    second = Process(1, 2)
    materials = Materials(tokenizer, STRICT, model, None, 0, second)  # type: ignore[arg-type]
    settings = configure("reward=orm").reward
    reward = REWARDS[settings.name](settings, materials)
    (rollout,) = grade(
        [Prompt("p", (1,))], [completion(tokenizer, RIGHT)], [PROBLEM], reward, STRICT
    )
    reward.judge_steps([rollout], [PROBLEM])
    assert with_whom == [(), (None, second)]


def test_the_score_is_the_sum_of_the_rewards(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    completions = [completion(tokenizer, text) for text in (RIGHT, SLIP, "")]
    reward = make_reward(configure("reward=dense").reward, tokenizer, None)
    rollouts = grade([Prompt("p", (1,))] * 3, completions, [PROBLEM] * 3, reward, STRICT)
    assert [r.score for r in rollouts] == pytest.approx([1.5, 0.25, 0.0])
    # Whatever the reward, right is right.
    assert [r.correct for r in rollouts] == [True, False, False]
