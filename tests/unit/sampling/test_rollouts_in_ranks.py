"""Several processes that sample together give what one gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reasonrl.policy.policy import load_policy
from reasonrl.problems.prompts import Plain, build_prompts
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import SamplingParams, rollouts
from reasonrl.sampling.rollouts import collect_rollouts, read_rollouts
from reasonrl.sampling.transformers import TransformersEngine
from reasonrl.types import Problem
from tests.helpers.configs import TINY
from tests.helpers.grading import STRICT
from tests.helpers.ranks import in_ranks

PROBLEMS = [Problem(f"p{i}", f"Ana has {i} apples.", "0", "") for i in range(24)]
PARAMS = SamplingParams(4, 1.0, 12, ("\n\n",))
SHARDS = 16  # completions a shard: 24 · 4 of them are six shards

pytestmark = pytest.mark.slow


class Killed(BaseException):
    pass


def collect(process: Process, file: Path, shard_size: int, dies: bool = False) -> list[list[str]]:
    """The problems that this process was asked, by call.

    dies: whether the last process dies in its second call.
    """
    rollouts.SHARD_SIZE = shard_size
    policy = load_policy(str(TINY), "float32", torch.device("cpu"))
    asked: list[list[str]] = []

    class Engine(TransformersEngine):
        def sample(self, prompts: Sequence[Any], *given: Any, **options: Any) -> Any:
            asked.append([prompt.problem_id for prompt in prompts])
            if dies and process.rank == process.size - 1 and len(asked) == 2:
                raise Killed
            return super().sample(prompts, *given, **options)

    collect_rollouts(
        Engine(policy.model, policy.tokenizer),
        PROBLEMS,
        build_prompts(PROBLEMS, policy.tokenizer, Plain("Q: {question}\nA:")),
        PARAMS,
        Outcome(STRICT),
        STRICT,
        seed=7,
        file=file,
        on_progress=lambda _: None,
        process=process,
    )
    return asked


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    def make(shard_size: int) -> Path:
        monkeypatch.setattr(rollouts, "SHARD_SIZE", shard_size)
        file = tmp_path / f"alone-{shard_size}.parquet"
        collect(ALONE, file, shard_size)
        return file

    return make


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [2, 3])
def test_whole_shards_are_claimed_and_the_file_is_the_same_to_the_byte(
    size: int, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "ranks.parquet"
    asked = in_ranks(size, collect, file, SHARDS)
    calls = [call for of_rank in asked for call in of_rank]
    assert sorted(p for call in calls for p in call) == sorted(p.id for p in PROBLEMS)
    assert [len(call) for call in calls] == [4] * 6
    assert digest(file) == digest(alone(SHARDS))
    assert not file.with_suffix(".shards").exists()


@pytest.mark.parametrize("size", [2, 3])
def test_a_single_shard_is_drawn_together_and_every_draw_is_that_of_one_process(
    size: int, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "ranks.parquet"
    asked = in_ranks(size, collect, file, 1024)
    assert [[len(call) for call in of_rank] for of_rank in asked] == [[24 // size]] * size
    tokenizer = load_policy(str(TINY), "float32", torch.device("cpu")).tokenizer
    prompts = build_prompts(PROBLEMS, tokenizer, Plain("Q: {question}\nA:"))
    together, by_one = (read_rollouts(each, prompts) for each in (file, alone(1024)))
    assert [r.completion.token_ids for r in together] == [r.completion.token_ids for r in by_one]
    assert [r.completion.sample_index for r in together] == [0, 1, 2, 3] * 24
    for one, other in zip(together, by_one, strict=True):
        assert list(one.completion.logprobs) == pytest.approx(
            list(other.completion.logprobs), abs=1e-5
        )


@pytest.mark.parametrize("size", [1, 3])
def test_after_a_death_another_number_of_processes_gives_the_same_bytes(
    size: int, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "ranks.parquet"
    with pytest.raises(AssertionError, match="Killed"):
        in_ranks(2, collect, file, SHARDS, True)
    kept = sorted(shard.name for shard in file.with_suffix(".shards").glob("[0-9]*"))
    assert 1 <= len(kept) <= 5
    asked = in_ranks(size, collect, file, SHARDS)
    assert sum(len(of_rank) for of_rank in asked) == 6 - len(kept)
    assert digest(file) == digest(alone(SHARDS))


def test_too_few_shards_are_not_dealt_out_whole() -> None:
    filled = [(1, 1), (6, 2), (6, 3), (5, 3), (7, 8), (8, 8), (2, 2), (3, 4)]
    assert [rollouts._fill(*each) for each in filled] == [True] * 8
    assert [rollouts._fill(*each) for each in [(1, 2), (2, 3), (3, 2), (9, 8)]] == [
        False,
        False,
        True,
        False,
    ]
