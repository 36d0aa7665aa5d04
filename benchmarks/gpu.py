"""The first hour on a GPU: is the plan of memory right, and how fast is it?

    python -m benchmarks.gpu learn --model 7b        a step of Expert Iteration's learner
    python -m benchmarks.gpu ppo --model 7b          iterations of PPO with LoRA
    python -m benchmarks.gpu sample --model 7b       completions a second
    python -m benchmarks.gpu refresh --model 7b      from shards to the copy that samples
    python -m benchmarks.gpu agree                   the tests of several processes, over NCCL
    torchrun --nproc-per-node 4 -m benchmarks.gpu learn --model 7b

Weights are random, so nothing is downloaded: memory and time depend on a model's shape alone. What
is learnt from is random too. Each writes a JSON file into ``--out``, with the GPU, what was
measured, and what the plan computes of it (``reasonrl.pipeline.memory`` and ``estimate``). More
arguments are settings as for train.py. Without a GPU all run through, with ``--model tiny``, and
measure neither memory nor a share of a GPU's peak.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.ppo import even_share
from reasonrl.algorithms.ppo import PPO
from reasonrl.config.model import ShapeConfig
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.grading import grader_of
from reasonrl.job import Job
from reasonrl.learning.optimization import Group
from reasonrl.learning.supervised import Example, Reader, accumulate_gradients
from reasonrl.pipeline.estimate import OPERATIONS, batch_seconds, learning_operations
from reasonrl.pipeline.memory import GB, Memory, memory_of
from reasonrl.policy.policy import DTYPES, Policy, load_tokenizer, shape_of
from reasonrl.policy.shards import empty_copy, refresh
from reasonrl.rewards import Reward
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import Process, joined
from reasonrl.sampling import SamplingParams
from reasonrl.types import Problem, Prompt
from reasonrl.util.atomic import write_json
from reasonrl.util.progress import Progress

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "models" / "tiny")
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 150  # of an example to learn from, about as in GSM8K
OF_RANKS = "in_ranks"  # what a test of several processes has in it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*MEASURES, "agree"])
    parser.add_argument("settings", nargs="*", help="as for train.py: algorithm.lora_rank=64")
    parser.add_argument("--model", default="7b", help="of conf/model")
    parser.add_argument("--repeats", type=int, default=3, help="counted, after one that warms up")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-first-hour"))
    args = parser.parse_intermixed_args()
    if args.what == "agree":
        sys.exit(agree(args.out))
    alone_in_a_group()
    with joined() as process:
        bench = Bench.of(args.what, args.model, args.settings, process)
        with job_of(bench) as job:
            measured = MEASURES[args.what](job, bench, args.repeats)
        if process.is_main:
            name = f"{args.what}-{args.model}-{process.size}.json"
            args.out.mkdir(parents=True, exist_ok=True)
            write_json(args.out / name, {**bench.described(args.settings), **measured})
            print((args.out / name).read_text())


@dataclass(frozen=True)
class Bench:
    """What is measured: a run's configuration, on the GPUs that there are."""

    what: str
    config: TrainConfig
    shape: ShapeConfig
    process: Process
    device: torch.device

    @classmethod
    def of(cls, what: str, model: str, settings: Sequence[str], process: Process) -> Bench:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            run = [f"model={model}", "tracking=none", *CONFIGS[what], *settings]
            config = resolve(compose("train", run))
        device = process.device(config.model.device)
        gigabytes = config.model.resources.gpu_gb
        if device.type == "cuda":
            gigabytes = int(torch.cuda.get_device_properties(device).total_memory / GB)
        there = replace(config.model.resources, nodes=1, gpus=process.size, gpu_gb=gigabytes)
        config = replace(config, model=replace(config.model, resources=there))
        shape = config.model.shape or shape_of(config.model.path)
        assert shape is not None
        rows = memory_of(config, shape).rows
        sampler = replace(config.sampler, batch_size=rows)
        return cls(what, replace(config, sampler=sampler), shape, process, device)

    @property
    def planned(self) -> Memory:
        return memory_of(self.config, self.shape)

    def held(self, rows: int) -> float:
        """The bytes that the plan has for a GPU that learns, and samples so many completions."""
        planned = self.planned
        sampling = sum(planned.sampling.values()) + rows * planned.row
        return max(sum(planned.learning.values()), sampling)

    @property
    def peak_operations(self) -> float:
        """What all GPUs can do in a second."""
        return OPERATIONS[self.config.model.compute_dtype] * self.process.size

    def described(self, settings: Sequence[str]) -> dict[str, Any]:
        gpu = self.device.type == "cuda"
        return {
            "what": self.what,
            "model": self.config.model.name,
            "parameters": self.shape.num_parameters,
            "settings": list(settings),
            "processes": self.process.size,
            "gpu": torch.cuda.get_device_name(self.device) if gpu else None,
            "torch": torch.__version__,
            "compute_dtype": self.config.model.compute_dtype,
        }

    def memory(self, planned: float) -> dict[str, Any]:
        """The most memory that any GPU has held since the last call, against the plan's bytes."""
        used = reserved = 0
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        used, reserved = map(max, zip(*self.process.gather((used, reserved)), strict=True))
        return {
            "planned_gb": round(planned / GB, 2),
            "peak_gb": round(used / GB, 2) if used else None,
            "reserved_gb": round(reserved / GB, 2) if used else None,
            "peak_of_plan": round(used / planned, 3) if used else None,
        }

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """The mean seconds of the work, done by all processes together, after a warm-up."""
        work()
        started = self._now()
        for _ in range(repeats):
            work()
        return (self._now() - started) / repeats

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.process.barrier()
        return time.perf_counter()


class RandomJob(Job):
    """A job on random weights, prompts and answers."""

    shape: ShapeConfig

    def learner(self, _: str) -> Policy:
        return Policy(random_model(self.shape, meta=not self.process.is_main), self.tokenizer)

    def prompts(self, problems: Sequence[Problem], *, few_shot: bool) -> list[Prompt]:
        del few_shot
        return [random_prompt(int(problem.id), self.shape.vocab_size) for problem in problems]

    def params(
        self, num_samples_per_prompt: int, temperature: float, step_label: tuple[int, ...] = ()
    ) -> SamplingParams:
        del step_label
        return SamplingParams(
            num_samples_per_prompt, temperature, self.config.dataset.max_new_tokens
        )

    def reward(self, *, num_continuations: int = 0) -> Reward:
        del num_continuations
        return even_share


@contextmanager
def job_of(bench: Bench) -> Iterator[RandomJob]:
    count = 4 * bench.process.size * max(1, bench.planned.rows)
    problems = [Problem(str(i), "", "0", "#### 0") for i in range(min(count, 4096))]
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(bench.process.broadcast(folder)))
        log = run.metrics if bench.process.is_main else Path(folder, "metrics.jsonl")
        with MetricsLog(log) as metrics:
            job = RandomJob(
                config=bench.config,
                run=run,
                device=bench.device,
                base="",
                init="",
                few_shot=False,
                grader=grader_of(bench.config.dataset),
                tokenizer=load_tokenizer(TINY),
                train=problems,
                validation=[],
                exemplars=[],
                log=metrics,
                progress=Progress(),
                process=bench.process,
            )
            object.__setattr__(job, "shape", bench.shape)
            yield job
            bench.process.barrier()


def learn(job: RandomJob, bench: Bench, repeats: int) -> dict[str, Any]:
    """Optimizer steps of masked cross-entropy, as of SFT, Expert Iteration and RCRL."""
    settings: Any = job.config.algorithm
    reader = Reader(job.learner("").model)
    job.shard(reader)
    trained = [p for p in reader.parameters() if p.requires_grad]
    groups = [Group(trained, settings.learning_rate)]
    optimization = job.optimization(reader, groups, settings, 1 + repeats, "checkpoints")
    examples = [random_example(i, bench.shape.vocab_size) for i in range(settings.batch_size)]
    dtype = DTYPES[job.config.model.compute_dtype]

    def step() -> None:
        accumulate_gradients(reader, examples, settings.micro_batch_tokens, dtype, job.process)
        optimization.step()

    reader.train()
    seconds = bench.seconds(step, repeats)
    tokens = sum(map(len, examples))
    done = tokens * learning_operations(bench.shape, settings.footprint())
    return {
        "tokens_per_step": tokens,
        "seconds_per_step": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        # The model's own operations, and with those that are done again for want of memory.
        **shares(bench, 6 * bench.shape.num_parameters * tokens / seconds, done / seconds),
        **bench.memory(sum(bench.planned.learning.values())),
    }


def ppo(job: RandomJob, bench: Bench, repeats: int) -> dict[str, Any]:
    """Iterations of PPO. A random policy hardly ever ends a completion: all have full length."""
    config: Any = job.config.algorithm
    trainer = PPO(job, config)
    phases = {"sampling": 0.0, "advantages": 0.0, "learning": 0.0}
    tokens = 0
    for iteration in range(1, 2 + repeats):
        if iteration == 2:  # the first one warms up
            phases, tokens = dict.fromkeys(phases, 0.0), 0
        trainer.trainer.state.iteration, trainer.trainer.state.taken = iteration, 0
        times = [bench._now()]
        explored = trainer.explore(iteration)
        times.append(bench._now())
        experience = trainer.compute_advantages(explored)
        times.append(bench._now())
        trainer.update(experience)
        times.append(bench._now())
        for name, began, ended in zip(phases, times, times[1:], strict=False):
            phases[name] += ended - began
        tokens += sum(len(rollout.completion.token_ids) for rollout in explored.rollouts)
    learnt = config.epochs * tokens
    done = learnt * learning_operations(bench.shape, config.footprint())
    rows = min(bench.planned.rows, -(-config.rollouts_per_iteration // bench.process.size))
    return {
        "rollouts": config.rollouts_per_iteration,
        **{f"seconds_of_{name}": round(total / repeats, 3) for name, total in phases.items()},
        "sampled_tokens_per_second": round(tokens / phases["sampling"]),
        "learnt_tokens_per_second": round(learnt / phases["learning"]),
        **shares(bench, None, done / phases["learning"]),
        **bench.memory(bench.held(rows)),
    }


def sample(job: RandomJob, bench: Bench, repeats: int) -> dict[str, Any]:
    """Completions of full length, in each process as many at a time as the plan has room for."""
    rows, length = max(1, bench.planned.rows), job.config.dataset.max_new_tokens
    samples = min(rows, 4)
    model = random_model(bench.shape).to(DTYPES[job.config.model.compute_dtype])
    policy = Policy(model.to(bench.device), job.tokenizer)  # type: ignore[arg-type]
    engine = job.sampler(policy)
    prompts = job.prompts(job.train[: max(1, rows // samples)], few_shot=False)
    params = job.params(samples, 1.0)
    drawn: list[int] = []

    def draw() -> None:
        completions = engine.sample(prompts, params, seed=len(drawn))
        drawn.append(sum(len(completion.token_ids) for completion in completions))

    seconds = bench.seconds(draw, repeats)
    tokens = bench.process.sum(torch.tensor([sum(drawn[1:]) / repeats])).item()
    computed = batch_seconds(job.config, bench.shape, len(prompts) * samples, length)
    return {
        "completions_at_a_time": len(prompts) * samples,
        "seconds_per_batch": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "planned_tokens_per_second": round(
            bench.process.size * len(prompts) * samples * length / computed
        ),
        **bench.memory(bench.held(len(prompts) * samples)),
    }


def refresh_copy(job: RandomJob, bench: Bench, repeats: int) -> dict[str, Any]:
    """The policy's weights, from the shards of all processes into a whole copy in each."""
    reader = Reader(job.learner("").model)
    job.shard(reader)
    whole = empty_copy(reader.policy, DTYPES[job.config.model.compute_dtype], bench.device)
    bench.memory(1)
    seconds = bench.seconds(lambda: refresh(whole, reader.policy), repeats)
    size = sum(p.nbytes for p in whole.parameters())
    held = 4 * bench.shape.num_parameters / bench.process.size + size
    return {
        "seconds": round(seconds, 3),
        "gb_per_second": round(size / GB / seconds, 2),
        **bench.memory(held + 8 * bench.shape.vocab_size * bench.shape.hidden_size),
    }


def agree(out: Path) -> int:
    """Runs the tests that start several processes, each on a GPU of its own."""
    files = [f for f in sorted((ROOT / "tests").rglob("test_*.py")) if OF_RANKS in f.read_text()]
    there = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "REASONRL_TEST_DEVICE": there},
        capture_output=True,
        text=True,
        check=False,
    )
    print(ran.stdout[-4000:])
    out.mkdir(parents=True, exist_ok=True)
    summary = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.stderr[-500:]
    found = {"what": "agree", "device": there, "gpus": torch.cuda.device_count()}
    write_json(out / "agree.json", {**found, "passed": ran.returncode == 0, "summary": summary})
    return ran.returncode


MEASURES: dict[str, Callable[[RandomJob, Bench, int], dict[str, Any]]] = {
    "learn": learn,
    "ppo": ppo,
    "sample": sample,
    "refresh": refresh_copy,
}
CONFIGS = {
    "learn": ["algorithm=sft", "algorithm.batch_size=128"],
    "ppo": [
        "algorithm=ppo",
        "init=pretrained",
        "algorithm.trainable=lora",
        "algorithm.lora_rank=128",
        "algorithm.value_layers=4",
    ],
    "sample": ["algorithm=sample", "dataset.max_new_tokens=256"],
    "refresh": ["algorithm=sft"],
}


def shares(bench: Bench, of_model: float | None, done: float) -> dict[str, Any]:
    """The shares of the GPUs' peak that operations a second are; null without a GPU."""
    if bench.device.type != "cuda":
        return {"mfu": None, "utilisation": None}
    mfu = None if of_model is None else round(of_model / bench.peak_operations, 3)
    return {"mfu": mfu, "utilisation": round(done / bench.peak_operations, 3)}


def random_model(shape: ShapeConfig, *, meta: bool = False) -> LlamaForCausalLM:
    """A model in float32, on the CPU or on the meta device. It has no token that ends a text."""
    config = LlamaConfig(
        **{name: value for name, value in vars(shape).items() if value is not None},
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    if meta:
        return model
    buffers = LlamaForCausalLM(_narrow(config)).named_buffers()
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
            if parameter.dim() == 1:
                parameter.fill_(1.0)
        for name, buffer in buffers:
            model.get_buffer(name).copy_(buffer)
    return model


def _narrow(config: LlamaConfig) -> LlamaConfig:
    """The same positions, which are all that buffers hold, in a model of no size."""
    head_dim = config.head_dim
    sizes = {"hidden_size": head_dim, "num_attention_heads": 1, "num_key_value_heads": 1}
    small = {"num_hidden_layers": 1, "intermediate_size": 1, "vocab_size": 1}
    return LlamaConfig(**{**config.to_dict(), **sizes, **small})


def random_prompt(seed: int, vocabulary: int) -> Prompt:
    return Prompt(str(seed), random_ids(seed, PROMPT_TOKENS, vocabulary))


def random_example(seed: int, vocabulary: int) -> Example:
    return Example(
        random_ids(seed, PROMPT_TOKENS, vocabulary),
        random_ids(-1 - seed, COMPLETION_TOKENS, vocabulary),
    )


def random_ids(seed: int, count: int, vocabulary: int) -> tuple[int, ...]:
    """Ids that the tiny tokenizer knows too: what is sampled is decoded with it."""
    known = min(vocabulary, 256)
    generator = torch.Generator().manual_seed(seed % 2**32)
    return tuple(torch.randint(known, (count,), generator=generator).tolist())


def alone_in_a_group() -> None:
    """Makes a process that nobody started with others the only one of a group, as a run does."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


if __name__ == "__main__":
    main()
