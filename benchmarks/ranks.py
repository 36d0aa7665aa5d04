"""How much faster are several processes than one, each with one thread?

    python -m benchmarks.ranks
    python -m benchmarks.ranks --model tiny --completions 64 --repeats 3

The work is as large as a run's: PPO's iteration of 1,024 completions, and a shard for each process.

A team of one process and a team of several do the same work in turn, so that whatever else the
machine does slows both. The one holds its model whole; the several hold it in shards, and sample
with a copy each. Weights are random (``benchmarks.gpu``), and completions have their full length.

    learning             an optimizer step of masked cross-entropy, as of SFT, EI and RCRL
    sampling             a round of EI, in whole shards: drawn, graded and written
    PPO's sampling       an iteration's completions
    PPO's advantages     reading them with the policy, the reference and the value function
    PPO's learning       the optimizer steps of an epoch

``speedup`` is the median, over turns, of the seconds of the one by those of the several.
``cpu_speedup`` is that of its CPU seconds by those of the busiest of the several: as it leaves out
the time in which processes wait, it bounds the speed-up on cores that nothing else takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu import Bench, job_of, random_example, random_model
from reasonrl.algorithms.ppo import PPO
from reasonrl.learning.optimization import Group
from reasonrl.learning.supervised import Reader, accumulate_gradients
from reasonrl.policy.policy import DTYPES, Policy
from reasonrl.runs.process import Process, joined
from reasonrl.sampling.rollouts import SHARD_SIZE
from reasonrl.util.atomic import write_json

SUPERVISED = ["algorithm.batch_size=16", "dataset.max_new_tokens=64"]
SAMPLES = 8  # of a question of the round
ITERATION = [
    "algorithm.trainable=all",
    "algorithm.value_layers=2",
    "dataset.max_new_tokens=64",
    "runtime.checkpoint_seconds=1e9",
    "algorithm.epochs=1",
]
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads

Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", help="of conf/model")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--completions",
        type=int,
        default=SHARD_SIZE,
        help="of PPO's iteration, in four optimizer steps; EI's round has so many a process",
    )
    parser.add_argument("--repeats", type=int, default=5, help="counted, after one that warms up")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    load = [round(os.getloadavg()[0], 2)]
    asked = args.model, args.completions, args.processes
    with team(1, *asked) as one, team(args.processes, *asked) as several:
        turns = []
        for number in range(1 + args.repeats):
            turns.append((one(), several()))
            print(f"turn {number} of {args.repeats}: {turns[-1]}", file=sys.stderr, flush=True)
        del turns[0]
    load.append(round(os.getloadavg()[0], 2))
    found = {
        "what": "ranks",
        "model": args.model,
        "processes": args.processes,
        "completions": args.completions,
        "repeats": args.repeats,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "load_before_and_after": load,
        "works": {name: compared(name, turns) for name in turns[0][0]},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"ranks-{args.model}-{args.processes}.json"
    write_json(file, found)
    print(json.dumps(found, indent=1))


def compared(name: str, turns: list[tuple[Any, Any]]) -> dict[str, float]:
    """The medians of the seconds that both teams took for a work, and of their ratios."""
    pairs = [(one[name], several[name]) for one, several in turns]
    return {
        "seconds_of_one": round(median(one[0] for one, _ in pairs), 3),
        "seconds_of_several": round(median(several[0] for _, several in pairs), 3),
        "speedup": round(median(one[0] / several[0] for one, several in pairs), 2),
        "cpu_speedup": round(median(one[1] / several[1] for one, several in pairs), 2),
    }


@contextmanager
def team(
    size: int, model: str, completions: int, shards: int
) -> Iterator[Callable[[], dict[str, tuple[float, float]]]]:
    """A team of so many processes, as a function that has it do all work once.

    The function returns for each work the seconds that it took, and the CPU seconds of the process
    that took most of them.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    members, ends = [], []
    for rank in range(size):
        mine, theirs = SPAWN.Pipe()
        given = theirs, rank, size, port, model, completions, shards
        member = SPAWN.Process(target=_member, args=given, daemon=True)
        member.start()
        theirs.close()  # so that a member's death is the end of the pipe
        members.append(member)
        ends.append(mine)

    def work() -> dict[str, tuple[float, float]]:
        for end in ends:
            end.send("again")
        took = [end.recv() for end in ends]
        return {
            name: (took[0][name][0], max(of_member[name][1] for of_member in took))
            for name in took[0]
        }

    try:
        for end in ends:
            end.recv()  # they are ready
        yield work
        for end in ends:
            end.send("enough")
    finally:
        for member in members:
            member.join(10)
            member.kill()


def _member(
    end: Connection, rank: int, size: int, port: int, model: str, completions: int, shards: int
) -> None:
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # threads of a CPU are compared
    with joined() as process, ExitStack() as stack:
        torch.set_num_threads(1)
        works = {
            **supervised(stack, model, shards * completions, process),
            **ppo(stack, model, completions, process),
        }
        end.send("ready")
        while end.recv() == "again":
            end.send({name: _timed(work, process) for name, work in works.items()})


def _timed(work: Work, process: Process) -> tuple[float, float]:
    process.barrier()
    started, cpu = time.perf_counter(), time.process_time()
    work()
    cpu = time.process_time() - cpu
    process.barrier()
    return time.perf_counter() - started, cpu


def supervised(stack: ExitStack, model: str, completions: int, process: Process) -> dict[str, Work]:
    """Expert Iteration's two phases."""
    bench = Bench.of("learn", model, SUPERVISED, process)
    job = stack.enter_context(job_of(bench))
    settings: Any = job.config.algorithm
    reader = Reader(job.learner("").model)
    job.shard(reader)
    groups = [Group([*reader.parameters()], settings.learning_rate)]
    optimization = job.optimization(reader, groups, settings, 1000, "checkpoints")
    examples = [random_example(i, bench.shape.vocab_size) for i in range(settings.batch_size)]
    dtype = DTYPES[job.config.model.compute_dtype]

    def learn() -> None:
        accumulate_gradients(reader, examples, settings.micro_batch_tokens, dtype, process)
        optimization.step()

    questions = job.train[: completions // SAMPLES]
    engine = job.sampler(Policy(random_model(bench.shape), job.tokenizer))
    numbers = iter(range(1000))

    def sample() -> None:
        number = next(numbers)
        job.collect(
            engine,
            questions,
            job.prompts(questions, few_shot=False),
            job.params(SAMPLES, 1.0),
            seed=number,
            file=job.work / f"{number}.parquet",
            description="sampling",
            reward=job.reward(),
        )

    return {"learning": learn, "sampling": sample}


def ppo(stack: ExitStack, model: str, completions: int, process: Process) -> dict[str, Work]:
    """PPO's three phases, of one iteration after another."""
    sizes = {"rollouts_per_iteration": completions, "batch_size": completions // 4}
    settings = [*ITERATION, *(f"algorithm.{name}={size}" for name, size in sizes.items())]
    bench = Bench.of("ppo", model, settings, process)
    job = stack.enter_context(job_of(bench))
    config: Any = job.config.algorithm
    trainer = PPO(job, config)
    state: Any = trainer.trainer.state
    made: dict[str, Any] = {}

    def sample() -> None:
        state.iteration, state.taken = state.iteration + 1, 0
        made["explored"] = trainer.explore(state.iteration)

    def assess() -> None:
        made["experience"] = trainer.compute_advantages(made["explored"])

    return {
        "PPO's sampling": sample,
        "PPO's advantages": assess,
        "PPO's learning": lambda: trainer.update(made["experience"]),
    }


if __name__ == "__main__":
    main()
