"""Rollouts in the making and on disk.

Rollouts are collected in shards, each a Parquet file written at once: a run that is killed or told
to stop has lost at most one shard. A row is a completion with its verdict; the prompt is joined
again by the problem's id, since the run's configuration determines the prompt.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.grading.base import Grader
from reasonrl.rewards import Reward
from reasonrl.rewards.sparse import is_correct, read_answer
from reasonrl.runs.preemption import at_own_pace, boundary, with_boundary
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import Sampler, SamplingParams
from reasonrl.types import Completion, FinishReason, Problem, Prompt, Rollout
from reasonrl.util.atomic import remove_folder, write_bytes
from reasonrl.util.seeding import derive_seed

# Completions in a shard. This is a constant, because the samples of a shard depend on its seed.
SHARD_SIZE = 1024
FINISH_REASONS = get_args(FinishReason)

SCHEMA = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_index": pa.int32(),
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "finish_reason": pa.string(),
        "answer": pa.string(),
        "correct": pa.bool_(),
        "rewards": pa.list_(pa.float64()),
        "score": pa.float64(),
    }
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    of_rollout = ("answer", "correct", "rewards", "score")
    columns = {
        name: [getattr(r if name in of_rollout else r.completion, name) for r in rollouts]
        for name in SCHEMA.names
    }
    write_table(path, pa.table(columns, schema=SCHEMA))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_rollouts(path: Path, prompts: Sequence[Prompt]) -> list[Rollout]:
    """The rollouts of a file, with the prompts they came from joined by problem id."""
    prompt_of = {prompt.problem_id: prompt for prompt in prompts}
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [
        Rollout(
            prompt=prompt_of[row["problem_id"]],
            completion=Completion(
                problem_id=row["problem_id"],
                sample_index=row["sample_index"],
                token_ids=tuple(row["token_ids"]),
                logprobs=tuple(row["logprobs"]),
                finish_reason=row["finish_reason"],
                text=row["text"],
            ),
            answer=row["answer"],
            correct=row["correct"],
            rewards=tuple(row["rewards"]),
        )
        for row in rows
    ]


def completions_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What completions look like.

    The statistics are the fraction right, the mean score, the fraction unparsed, the mean length in
    tokens, and the fraction that ended in each way.
    """
    completions = [r.completion for r in rollouts]
    endings = [c.finish_reason for c in completions]
    return {
        "correct": float(np.mean([r.correct for r in rollouts])),
        "score": float(np.mean([r.score for r in rollouts])),
        "unparsed": float(np.mean([r.answer is None for r in rollouts])),
        "mean_length": float(np.mean([len(c.token_ids) for c in completions])),
        **{f"finish_{ending}": endings.count(ending) / len(endings) for ending in FINISH_REASONS},
    }


def collect_rollouts(
    sampler: Sampler,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    params: SamplingParams,
    reward: Reward,
    grader: Grader,
    *,
    seed: int,
    file: Path,
    on_progress: Callable[[int], None],
    process: Process = ALONE,
) -> list[Rollout]:
    """Samples ``params.num_samples_per_prompt`` completions of every prompt and scores them.

    problems, prompts: one prompt for each problem, in the same order.
    file: where the rollouts go, by way of shards beside it. Rollouts that are there already are
        read, not sampled again.
    process: one of the processes that sample together. The shards are dealt out to them; the
        content of a shard doesn't depend on which process draws it.

    Raises Preempted, before a shard or as its completions finish, if the run is told to stop.
    """
    num_samples = params.num_samples_per_prompt
    shards = file.with_suffix(".shards")
    if process.broadcast(file.exists()):
        if process.is_main and shards.exists():  # a kill came before they were removed
            remove_folder(shards)
        on_progress(len(prompts) * num_samples)
        return read_rollouts(file, prompts)
    parts = [
        (number, part, shards / f"{number:05d}.parquet")
        for number, part in enumerate(_parts(len(prompts), num_samples))
    ]
    with at_own_pace(process):
        for number, part, shard in process.shard(parts):
            if shard.exists():
                on_progress(len(prompts[part]) * num_samples)
                continue
            boundary()
            completions = sampler.sample(
                prompts[part],
                params,
                seed=derive_seed(seed, number),
                on_progress=with_boundary(on_progress),
            )
            places = [i for i in range(part.start, part.stop) for _ in range(num_samples)]
            write_rollouts(
                shard,
                grade(
                    [prompts[i] for i in places],
                    completions,
                    [problems[i] for i in places],
                    reward,
                    grader,
                ),
            )
    rollouts = [
        rollout for _, part, shard in parts for rollout in read_rollouts(shard, prompts[part])
    ]
    process.barrier()  # all have read the shards
    if process.is_main:
        write_rollouts(file, rollouts)
        remove_folder(shards)
    return rollouts


def grade(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    problems: Sequence[Problem],
    reward: Reward,
    grader: Grader,
) -> list[Rollout]:
    """Completions, each with its prompt and its problem, as rollouts."""
    rewards = reward(completions, problems)
    return [
        Rollout(
            prompt,
            completion,
            read_answer(completion, grader),
            is_correct(completion, problem, grader),
            paid,
        )
        for prompt, completion, problem, paid in zip(
            prompts, completions, problems, rewards, strict=True
        )
    ]


def _parts(num_prompts: int, num_samples_per_prompt: int) -> Iterator[slice]:
    size = max(1, SHARD_SIZE // num_samples_per_prompt)
    for start in range(0, num_prompts, size):
        yield slice(start, min(start + size, num_prompts))
