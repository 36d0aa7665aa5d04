"""Rollouts in the making and on disk.

Rollouts are collected in shards, each a Parquet file written at once: a run that is killed or told
to stop has lost at most one shard. A row is a completion with its verdict; the prompt is joined
again by the problem's id, since the run's configuration determines the prompt.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.grading.base import Grader
from reasonrl.rewards import Reward
from reasonrl.rewards.verdicts import FINISH_REASONS, grade
from reasonrl.runs.preemption import at_own_pace, boundary, with_boundary
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import Sampler, SamplingParams
from reasonrl.types import Completion, Problem, Prompt, Rollout, SparseNumbers
from reasonrl.util.atomic import remove_folder, write_bytes
from reasonrl.util.seeding import derive_seed

# Completions in a shard. This is a constant, because the samples of a shard depend on its seed.
SHARD_SIZE = 1024
# Processes draw each shard together where whole shards would fill less than this of their time.
FULL = 3 / 4
READ_AT_ONCE = 4096  # rows that are decoded at once

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
        "undecided": pa.bool_(),
    }
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    of_rollout = ("answer", "correct", "rewards", "score", "undecided")
    columns = {
        name: [getattr(r if name in of_rollout else r.completion, name) for r in rollouts]
        for name in SCHEMA.names
    }
    arrays = [
        _lists(columns[field.name], field.type)
        if pa.types.is_list(field.type)
        else pa.array(columns[field.name], field.type)
        for field in SCHEMA
    ]
    write_table(path, pa.table(arrays, schema=SCHEMA))


def _lists(rows: Sequence[Sequence[float]], kind: pa.ListType) -> pa.ListArray:
    """A column of lists of numbers."""
    ends = np.cumsum([0, *map(len, rows)])
    numbers = np.fromiter(chain.from_iterable(rows), kind.value_type.to_pandas_dtype(), ends[-1])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(numbers))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_rollouts(path: Path, prompts: Sequence[Prompt]) -> list[Rollout]:
    """The rollouts of a file, with the prompts they came from joined by problem id."""
    prompt_of = {prompt.problem_id: prompt for prompt in prompts}
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(READ_AT_ONCE, columns=SCHEMA.names)
        return [rollout for batch in batches for rollout in _rollouts(batch, prompt_of)]


def _rollouts(batch: pa.RecordBatch, prompt_of: Mapping[str, Prompt]) -> Iterator[Rollout]:
    """The rollouts of some rows; no number of a token becomes an object of its own."""
    of_rows = (
        *(batch[name].to_pylist() for name in ("problem_id", "sample_index", "text")),
        _arrays(batch["token_ids"], "i"),
        _arrays(batch["logprobs"], "f"),
        *(batch[name].to_pylist() for name in ("finish_reason", "answer", "correct")),
        _sparse(batch["rewards"]),
        _undecided(batch),
    )
    for problem_id, sample_index, text, ids, logprobs, reason, *verdict in zip(
        *of_rows, strict=True
    ):
        prompt = prompt_of[problem_id]
        completion = Completion(
            prompt.problem_id,
            sample_index,
            ids,
            logprobs,
            FINISH_REASONS[FINISH_REASONS.index(reason)],
            text,
        )
        yield Rollout(prompt, completion, *verdict)


def _undecided(batch: pa.RecordBatch) -> list[bool]:
    """Whether each row's verdict is undecided, which files of earlier versions don't say."""
    known = "undecided" in batch.schema.names
    return [bool(u) for u in batch["undecided"].to_pylist()] if known else [False] * len(batch)


def _arrays(lists: pa.ListArray, typecode: str) -> Iterator[array[Any]]:
    """The numbers of each list."""
    numbers = lists.values.to_numpy()
    for start, end in pairwise(lists.offsets.to_pylist()):
        yield array(typecode, numbers[start:end].tobytes())


def _sparse(lists: pa.ListArray) -> Iterator[SparseNumbers]:
    """The numbers of each list, few of which aren't 0."""
    numbers, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    (places,) = numbers.nonzero()
    values = numbers[places]
    bounds = np.searchsorted(places, offsets)
    for (start, end), (first, last) in zip(
        pairwise(offsets.tolist()), pairwise(bounds.tolist()), strict=True
    ):
        of_list = slice(first, last)
        yield SparseNumbers(
            end - start, tuple((places[of_list] - start).tolist()), tuple(values[of_list].tolist())
        )


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
    process: this one of the processes that sample together. They claim shard after shard, and the
        file is the same to the byte for any number of them. Where shards are too few to fill their
        time, all draw each shard together: draws are those of one process, and so are completions,
        up to what logits differ by when a batch has another shape.

    Raises Preempted, before a shard or as its completions finish, if the run is told to stop.
    """
    num_samples = params.num_samples_per_prompt
    shards = file.with_suffix(".shards")
    parts = _parts(len(prompts), num_samples)
    files = [shards / f"{number:05d}.parquet" for number in range(len(parts))]

    def draw(number: int, places: range) -> list[Rollout]:
        """The rollouts of those prompts of a shard that have these places among all prompts."""
        boundary()
        of_places = slice(places.start, places.stop)
        completions = sampler.sample(
            prompts[of_places],
            params,
            seed=derive_seed(seed, number),
            first=places.start - parts[number].start,
            on_progress=with_boundary(on_progress),
        )
        each = [i for i in places for _ in range(num_samples)]
        return grade(
            [prompts[i] for i in each], completions, [problems[i] for i in each], reward, grader
        )

    if not process.first(file.exists):
        todo = process.first(lambda: [n for n, shard in enumerate(files) if not shard.exists()])
        if process.is_main:
            on_progress(num_samples * sum(len(p) for n, p in enumerate(parts) if n not in todo))
        if _fill(len(parts), process.size):
            with at_own_pace(process):
                for number in (todo[i] for i in process.deal(str(file), len(todo))):
                    write_rollouts(files[number], draw(number, parts[number]))
        else:
            for number in todo:
                with at_own_pace(process):
                    drawn = draw(number, process.piece(parts[number]))
                rollouts = [r for piece in process.gather(drawn) for r in piece]
                process.first(partial(write_rollouts, files[number], rollouts))
        process.first(partial(_merge, files, file))
    elif process.is_main:
        on_progress(len(prompts) * num_samples)
    if process.is_main and shards.exists():
        remove_folder(shards)
    return read_rollouts(file, prompts)


def _parts(num_prompts: int, num_samples_per_prompt: int) -> list[range]:
    """The places of the prompts of each shard."""
    size = max(1, SHARD_SIZE // num_samples_per_prompt)
    return [range(start, min(start + size, num_prompts)) for start in range(0, num_prompts, size)]


def _fill(num_shards: int, num_processes: int) -> bool:
    """Whether shards, dealt out whole, keep the processes busy for FULL of their time."""
    turns = -(-num_shards // num_processes)
    return num_shards >= FULL * turns * num_processes


def _merge(shards: Sequence[Path], file: Path) -> None:
    """Writes the rows of all shards to one file, as ``write_rollouts`` writes them."""
    tables = [pq.read_table(shard, schema=SCHEMA) for shard in shards] or [SCHEMA.empty_table()]
    write_table(file, pa.concat_tables(tables).combine_chunks())
