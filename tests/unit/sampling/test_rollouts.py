"""Rollouts: shards, going on after a kill, the file format, and what completions look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.grading.strict import Strict
from reasonrl.problems.prompts import Plain, build_prompts
from reasonrl.rewards.sparse import Outcome
from reasonrl.rewards.verdicts import completions_statistics
from reasonrl.sampling import Sampler, SamplingParams, rollouts
from reasonrl.sampling.rollouts import (
    collect_rollouts,
    read_rollouts,
    write_rollouts,
)
from reasonrl.types import Completion, Problem, Prompt, Rollout
from tests.helpers.grading import STRICT

PROBLEMS = [Problem(f"p{i}", f"Ana has {i} apples.", str(i), "") for i in range(5)]
PARAMS = SamplingParams(3, 1.0, 20, ("\n\n",))


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return build_prompts(PROBLEMS, tokenizer, Plain("Q: {question}\nA:"))


@pytest.fixture(autouse=True)
def _two_prompts_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "SHARD_SIZE", 7)  # 7 // 3 samples


class Killed(BaseException):
    pass


def answers_2(_problem_id: str, _visit: int) -> list[str]:
    return [" #### 2", " #### 1\n\n", " 1 + 1"]


def answers_2_but_dies_in_the_last_shard(problem_id: str, visit: int) -> list[str]:
    if problem_id == "p4":
        raise Killed
    return answers_2(problem_id, visit)


def collect(
    sampler: Sampler, prompts: Sequence[Prompt], file: Path, seed: int = 7
) -> tuple[list[Rollout], int]:
    """The rollouts, and how many of them were reported as progress."""
    progress: list[int] = []
    found = collect_rollouts(
        sampler,
        PROBLEMS,
        prompts,
        PARAMS,
        Outcome(STRICT),
        STRICT,
        seed=seed,
        file=file,
        on_progress=progress.append,
    )
    return found, sum(progress)


def test_rollouts_come_in_order_scored_against_their_own_problem(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    found, progress = collect(scripted(answers_2), prompts, tmp_path / "round-1.parquet")
    ids = [(r.completion.problem_id, r.completion.sample_index) for r in found]
    assert ids == [(f"p{i}", k) for i in range(5) for k in range(3)]
    assert [r.answer for r in found] == ["2", "1", None] * 5
    # Only p2's gold answer is 2, only p1's is 1.
    assert [i for i, r in enumerate(found) if r.correct] == [4, 6]
    assert [i for i, r in enumerate(found) if r.score == 1.0] == [4, 6]
    assert all(r.prompt is prompts[i // 3] for i, r in enumerate(found))
    assert progress == 15


def test_each_shard_has_a_seed_of_its_own_that_follows_from_the_seed(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    sampler, again, other = (scripted(answers_2) for _ in range(3))
    collect(sampler, prompts, tmp_path / "a.parquet")
    collect(again, prompts, tmp_path / "b.parquet")
    collect(other, prompts, tmp_path / "c.parquet", seed=8)
    asked, seeds = [len(call[0]) for call in sampler.calls], [call[2] for call in sampler.calls]
    assert asked == [2, 2, 1]
    assert len({*seeds, *(call[2] for call in other.calls)}) == 6
    assert seeds == [call[2] for call in again.calls]


def test_a_killed_collection_goes_on_without_sampling_again(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    straight, _ = collect(scripted(answers_2), prompts, tmp_path / "straight.parquet")
    file = tmp_path / "killed.parquet"
    with pytest.raises(Killed):
        collect(scripted(answers_2_but_dies_in_the_last_shard), prompts, file)
    assert not file.exists()
    sampler = scripted(answers_2)
    found, progress = collect(sampler, prompts, file)
    assert found == straight
    assert progress == 15
    ((asked, _, _),) = sampler.calls
    assert [p.problem_id for p in asked] == ["p4"]
    assert file.read_bytes() == (tmp_path / "straight.parquet").read_bytes()
    # Shards are merged, and nothing else is left.
    assert {p.name for p in tmp_path.iterdir()} == {"straight.parquet", "killed.parquet"}


def test_what_was_collected_is_read_not_sampled(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    file = tmp_path / "round-1.parquet"
    found, _ = collect(scripted(answers_2), prompts, file)
    leftover = tmp_path / "round-1.shards"
    leftover.mkdir()  # as a kill after the merge leaves it
    sampler = scripted(answers_2)
    assert collect(sampler, prompts, file) == (found, 15)
    assert not sampler.calls
    assert not leftover.exists()


def test_files_give_back_exactly_what_was_written(tmp_path: Path) -> None:
    third = 0.3333333432674408  # the float32 nearest to 1/3
    prompts = [Prompt("p0", (3, 4)), Prompt("p1", (5,))]
    written = [
        Rollout(
            prompts[0],
            Completion("p0", 0, (7, 0), (-third, -1.1754943508222875e-38), "eos", " −½ \U0001f34e"),
            answer="0.5",
            correct=False,
            rewards=(1 / 3, -0.1),
        ),
        Rollout(prompts[1], Completion("p1", 1, (), (), "stop", ""), None, True, ()),
    ]
    file = tmp_path / "rollouts.parquet"
    write_rollouts(file, written)
    assert read_rollouts(file, prompts) == written


def test_statistics_of_completions() -> None:
    prompt = Prompt("p0", (1,))

    def rollout(length: int, reason: str, answer: str | None, rewards: list[float]) -> Rollout:
        ids = tuple(range(length))
        completion = Completion("p0", 0, ids, (0.0,) * length, reason, "")  # type: ignore[arg-type]
        right, undecided = answer == "2", answer == "9^{9^9}"
        return Rollout(prompt, completion, answer, right, tuple(rewards), undecided)

    assert completions_statistics(
        [
            rollout(1, "eos", "2", [1.0]),
            rollout(2, "stop", "9^{9^9}", [0.25, 0.5]),
            rollout(8, "length", None, []),
            rollout(3, "eos", None, []),
        ]
    ) == {
        "correct": 0.25,
        "score": 0.4375,  # (1 + 0.75) / 4
        "unparsed": 0.5,
        "undecided": 0.25,
        "mean_length": 3.5,  # 14 / 4
        "finish_eos": 0.5,
        "finish_stop": 0.25,
        "finish_length": 0.25,
    }


class Doubtful(Strict):
    """A grader that can't decide about 13 in time."""

    def equal_each(
        self, answers: Sequence[str | None], golds: Sequence[str]
    ) -> Sequence[bool | None]:
        return [None if a == "13" else a == g for a, g in zip(answers, golds, strict=True)]


def test_what_is_undecided_is_wrong_and_stays_known(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    texts = [" #### 13", " #### 0", " #### 1"]
    grader, file = Doubtful("Q:"), tmp_path / "round-1.parquet"
    for _ in range(2):  # collected, then read
        found = collect_rollouts(
            scripted(lambda *_: texts), PROBLEMS[:1], prompts[:1], PARAMS, Outcome(STRICT), grader,
            seed=7, file=file, on_progress=lambda _: None,
        )  # fmt: skip
        verdicts = [(r.answer, r.correct, r.undecided) for r in found]
        assert verdicts == [("13", False, True), ("0", True, False), ("1", False, False)]


def test_files_of_earlier_versions_say_nothing_of_it(
    scripted: Callable, prompts: list[Prompt], tmp_path: Path
) -> None:
    file = tmp_path / "round-1.parquet"
    found, _ = collect(scripted(answers_2), prompts, file)
    pq.write_table(pq.read_table(file).drop_columns("undecided"), file)
    assert read_rollouts(file, prompts) == found


def test_nothing_to_ask_is_an_empty_file(tmp_path: Path, scripted: Callable) -> None:
    file = tmp_path / "none.parquet"
    for _ in range(2):  # collected, then read
        assert collect(scripted(answers_2), [], file) == ([], 0)
    assert [path.name for path in tmp_path.iterdir()] == ["none.parquet"]
