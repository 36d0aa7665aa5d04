"""Evaluations: graded completions to metrics, comparisons, and what is on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.evaluation.policy import evaluate, read_evaluation
from reasonrl.evaluation.summary import (
    Evaluation,
    chosen_by_reward_model,
    reported_k,
    summarise,
)
from reasonrl.grading.estimates import Estimate
from reasonrl.problems.prompts import Plain, build_prompts
from reasonrl.reward_models.model import Description, question_hash
from reasonrl.rewards.sparse import Outcome
from reasonrl.rewards.verdicts import grade
from reasonrl.sampling import ENGINES
from reasonrl.types import Completion, FinishReason, Problem, Prompt, Rollout, SavedPolicy
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.grading import STRICT

PROBLEMS = [
    Problem("p0", "Ana has 5 apples.", "5", "2+3=5\n#### 5"),
    Problem("p1", "Ana has 6 apples.", "6", "2*3=6\n#### 6"),
    Problem("p2", "Ana has 7 apples.", "7", "3+4=7\n#### 7"),
]


def graded(problem: Problem, texts: Sequence[str], reason: FinishReason = "eos") -> list[Rollout]:
    completions = [
        Completion(problem.id, i, (7,) * len(text.split()), (), reason, text)
        for i, text in enumerate(texts)
    ]
    n = len(texts)
    return grade(
        [Prompt(problem.id, (1,))] * n, completions, [problem] * n, Outcome(STRICT), STRICT
    )


# Answers of the four samples: 5 5 9 none, 9 6 6 9, 8 8 7 8.
SAMPLES = [
    *graded(PROBLEMS[0], ["2+3=5\n#### 5", "3+2=5\n#### 5", "2+7=9\n#### 9", "2+3=5"]),
    *graded(PROBLEMS[1], ["#### 9", "2*3=6\n#### 6", "2 * 3 = 6\n#### 6", "#### 9"]),
    *graded(PROBLEMS[2], ["1+7=8\n#### 8", "#### 8", "#### 7", "2+6=8\n#### 8"]),
]
GREEDY = [
    *graded(PROBLEMS[0], ["#### 5"]),
    *graded(PROBLEMS[1], ["#### 9"]),
    *graded(PROBLEMS[2], ["#### 7"]),
]


def test_metrics_of_graded_completions() -> None:
    found = summarise(PROBLEMS, GREEDY, SAMPLES, STRICT)
    assert found.problem_ids == ("p0", "p1", "p2")
    scores = {name: values.tolist() for name, values in found.scores.items()}
    assert scores == {
        "maj@1": [1.0, 0.0, 1.0],
        # 5 leads 9; 6 and 9 tie, worth half; 8 leads 7
        "maj@4": [1.0, 0.5, 0.0],
        # 2, 2 and 1 of 4 are right
        "pass@1": pytest.approx([1 / 2, 1 / 2, 1 / 4]),
        # 1 - C(2,2) / C(4,2) = 5/6, and 1 - C(3,2) / C(4,2) = 1/2
        "pass@2": pytest.approx([5 / 6, 5 / 6, 1 / 2]),
        "pass@4": [1.0, 1.0, 1.0],
    }
    assert list(scores) == ["maj@1", "maj@4", "pass@1", "pass@2", "pass@4"]


def test_statistics_of_graded_completions() -> None:
    found = summarise(PROBLEMS, GREEDY, SAMPLES, STRICT).statistics
    assert found["greedy/score"] == pytest.approx(2 / 3)
    assert found["greedy/unparsed"] == 0.0
    assert found["sampled/score"] == pytest.approx(5 / 12)
    assert found["sampled/unparsed"] == pytest.approx(1 / 12)
    assert found["sampled/finish_eos"] == 1.0
    # Traces: 2+3=5 (twice), 3+2=5, 2+7=9; 2*3=6 (twice), none (twice); 1+7=8, none
    # (twice), 2+6=8.
    assert found["sampled/unique_fraction"] == pytest.approx((3 / 4 + 2 / 4 + 3 / 4) / 3)
    # Of the right ones: two; one; one, the empty.
    assert found["sampled/unique_correct"] == pytest.approx(4 / 3)
    # The mean over problems of 1/2, 1/2, 1/4; 5/6, 5/6, 1/2; 1, 1, 3/4; 1, 1, 1.
    curve = [found[f"pass_curve/{k}"] for k in (1, 2, 3, 4)]
    assert curve == pytest.approx([5 / 12, 13 / 18, 11 / 12, 1.0])


def test_one_sample_has_no_vote_and_greedy_may_be_absent() -> None:
    found = summarise(PROBLEMS[:1], [], graded(PROBLEMS[0], ["#### 5"]), STRICT)
    assert {name: v.tolist() for name, v in found.scores.items()} == {"pass@1": [1.0]}
    assert not any(name.startswith("greedy/") for name in found.statistics)


@pytest.mark.parametrize(
    ("num_samples", "reported"),
    [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (96, [1, 2, 4, 8, 16, 32, 64, 96])],
)
def test_pass_is_reported_at_powers_of_two_and_at_all(
    num_samples: int, reported: list[int]
) -> None:
    assert reported_k(num_samples) == reported


def test_a_truncated_completion_is_wrong_whatever_its_text() -> None:
    cut = graded(PROBLEMS[0], ["2+3=5\n#### 5"] * 3, reason="length")
    right = graded(PROBLEMS[0], ["2+3=5\n#### 5", "#### 9", "#### 9"])
    assert [(r.answer, r.correct, r.score) for r in cut] == [(None, False, 0.0)] * 3
    (score,) = summarise(PROBLEMS[:1], [], [*cut, right[0]], STRICT).scores["maj@4"]
    assert score == 1.0  # the one that votes is right
    (score,) = summarise(PROBLEMS[:1], [], [*cut, right[1]], STRICT).scores["maj@4"]
    assert score == 0.0


RIGHT = np.array([r.correct for r in SAMPLES], dtype=float)


@pytest.mark.parametrize(
    ("probabilities", "rerank", "weighted"),
    [
        (RIGHT, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),  # an oracle: pass@4
        (np.full(12, 0.3), [1 / 2, 1 / 2, 1 / 4], [1.0, 0.5, 0.0]),  # the mean; maj@4
        (1 - RIGHT, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),  # reversed
        # The best of p0 is a wrong 9, but 5 has 0.3 + 0.4 against its 0.6. The best of p1 is a
        # right 6 with 0.7 + 0.5, but 9 has 0.6 + 0.65. Of p2 it is 7, with 0.8 against 0.3 for 8.
        (
            [0.3, 0.4, 0.6, 0.5, 0.6, 0.7, 0.5, 0.65, 0.1, 0.1, 0.8, 0.1],
            [0.0, 1.0, 1.0],
            [1.0, 0.0, 1.0],
        ),
    ],
)
def test_choosing_by_a_reward_model(
    probabilities: Sequence[float], rerank: list[float], weighted: list[float]
) -> None:
    chosen = chosen_by_reward_model(SAMPLES, PROBLEMS, np.asarray(probabilities))
    assert list(chosen) == ["rerank@4", "weighted_maj@4"]
    assert chosen["rerank@4"].tolist() == rerank
    assert chosen["weighted_maj@4"].tolist() == weighted


def of_scores(*scores: float, ids: tuple[str, ...] = ("p0", "p1", "p2", "p3")) -> Evaluation:
    return Evaluation(ids, {"maj@1": np.array(scores)}, {})


def test_a_gain_is_paired() -> None:
    before, after = of_scores(1, 0, 0, 1), of_scores(1, 1, 0, 1)
    gain = after.gain_on(before)["maj@1"]
    assert (gain.value, gain.n) == (0.25, 4)  # one of four
    assert gain.low == 0.0  # a loss on none, so no resample loses
    assert before.gain_on(after)["maj@1"].value == -0.25


def test_only_what_both_measured_is_compared() -> None:
    after = Evaluation(("p0",), {"maj@1": np.array([1.0]), "pass@8": np.array([1.0])}, {})
    before = Evaluation(("p0",), {"maj@1": np.array([0.0]), "pass@4": np.array([1.0])}, {})
    assert list(after.gain_on(before)) == ["maj@1"]


def test_evaluations_of_different_problems_are_not_compared() -> None:
    with pytest.raises(UserError, match="same problems"):
        of_scores(1, 0, ids=("p0", "p1")).gain_on(of_scores(1, 0, ids=("p0", "p2")))


@pytest.fixture
def config(configure: Callable[..., TrainConfig]) -> TrainConfig:
    return configure()


def script(problem_id: str, visit: int) -> list[str]:
    """Greedy first, then four samples."""
    of = GREEDY if visit == 0 else SAMPLES
    return [f" {r.completion.text}" for r in of if r.completion.problem_id == problem_id]


class Killed(BaseException):
    pass


def run(config: TrainConfig, policy: str | SavedPolicy, folder: Path, **options: Any) -> Evaluation:
    return evaluate(
        config,
        SavedPolicy(policy, few_shot=False) if isinstance(policy, str) else policy,
        PROBLEMS,
        [],
        folder=folder,
        progress=Progress(),
        description="evaluation",
        **options,
    )


def same(one: Evaluation, other: Evaluation) -> bool:
    return (
        one.problem_ids == other.problem_ids
        and one.statistics == other.statistics
        and {k: v.tolist() for k, v in one.scores.items()}
        == {k: v.tolist() for k, v in other.scores.items()}
    )


def test_an_evaluation_is_read_back_as_it_was_made(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sampler = scripted(script)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    folder = tmp_path / "after"
    made = run(config, random_policy, folder)
    assert made.scores["maj@4"].tolist() == [1.0, 0.5, 0.0]
    temperatures = [(p.temperature, p.num_samples_per_prompt) for _, p, _ in sampler.calls]
    assert temperatures == [(0.0, 1), (0.7, 4)]

    prompts = build_prompts(PROBLEMS, tokenizer, Plain(config.dataset.prompt))
    assert same(summarise(PROBLEMS, *read_evaluation(folder, prompts), STRICT), made)
    assert same(run(config, random_policy, folder), made)
    assert len(sampler.calls) == 2  # nothing was sampled again
    record = json.loads((folder / "metrics.json").read_text())
    assert record["problems"] == 3
    assert record["estimates"]["maj@4"]["value"] == 0.5
    written = json.loads((folder / "metrics.json").read_text())["estimates"]
    assert {name: Estimate(**e) for name, e in written.items()} == made.estimates()


def test_right_answers_that_are_written_differently_vote_together() -> None:
    """A grader may take several texts for the gold answer."""
    votes = [("5", True), ("5.0", True), ("9", False), ("9", False), ("five", True)]
    samples = [
        Rollout(Prompt("p0", (1,)), Completion("p0", i, (7,), (), "eos", ""), answer, right, (0.0,))
        for i, (answer, right) in enumerate(votes)
    ]
    assert summarise(PROBLEMS[:1], [], samples, STRICT).scores["maj@5"].tolist() == [1.0]


def test_a_policy_with_labels_is_asked_under_the_best(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sampler = scripted(script)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    labelled = SavedPolicy(random_policy, few_shot=False, labels={"[BAD]": (5,), "[GOOD]": (6, 7)})
    run(config, labelled, tmp_path / "after")
    assert [params.step_label for _, params, _ in sampler.calls] == [(6, 7), (6, 7)]


def test_a_reward_model_that_has_learnt_from_a_question_is_refused_before_anything_is_sampled(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sampler = scripted(script)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    seen = frozenset({question_hash(PROBLEMS[1].question)})
    knows = Description(tmp_path / "model", tokenizer, Plain(config.dataset.prompt), seen)
    with pytest.raises(UserError, match=r"must not have been trained on the questions .* 1 of 3"):
        run(config, random_policy, tmp_path / "after", reward_model=knows)
    assert sampler.calls == []


@pytest.mark.parametrize("few_shot", [False, True])
def test_exemplars_are_shown_to_a_policy_that_is_asked_with_them_alone(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    few_shot: bool,
) -> None:
    sampler = scripted(script)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    exemplar = Problem("x", "Ana has 9 apples.", "9", "4+5=9\n#### 9")
    evaluate(
        config,
        SavedPolicy(random_policy, few_shot=few_shot),
        PROBLEMS,
        [exemplar],
        folder=tmp_path / "after",
        progress=Progress(),
        description="evaluation",
    )
    for prompts, _, _ in sampler.calls:
        texts = [tokenizer.decode(prompt.token_ids) for prompt in prompts]
        assert [text.count("Q:") for text in texts] == [1 + few_shot] * 3
        assert [("4+5=9" in text) for text in texts] == [few_shot] * 3


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_sampled(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sampler = scripted(script)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "after"
    with pytest.raises(UserError, match=f"path={folder} must be writable; got Not a directory"):
        run(config, random_policy, folder)
    assert sampler.calls == []


def test_an_interrupted_evaluation_goes_on(
    config: TrainConfig,
    random_policy: str,
    scripted: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def dying(problem_id: str, visit: int) -> list[str]:
        if visit == 1:
            raise Killed
        return script(problem_id, visit)

    sampler = scripted(dying)
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    with pytest.raises(Killed):
        run(config, random_policy, tmp_path / "after")
    sampler.script = script
    resumed = run(config, random_policy, tmp_path / "after")
    # Greedy once, the samples twice: in the first attempt they came to nothing.
    assert [p.num_samples_per_prompt for _, p, _ in sampler.calls] == [1, 4, 4]
    assert resumed.scores["maj@1"].tolist() == [1.0, 0.0, 1.0]
    assert resumed.scores["maj@4"].tolist() == [1.0, 0.5, 0.0]
