"""PPO by one, two and three processes: they assess and learn the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reasonrl.algorithms.ppo import PPO
from reasonrl.learning.checkpoint import weights_hash
from reasonrl.policy import shards
from reasonrl.policy_gradient.experience import token_data
from reasonrl.runs.metrics_log import reproducible
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion, Prompt, Rollout
from tests.helpers.configs import TINY, small_config
from tests.helpers.jobs import job_of
from tests.helpers.ranks import in_ranks

# Five questions of two completions each, of other lengths: 40 tokens. A minibatch has two
# questions, so that of three processes one has nothing to read, and of the last one question two.
SMALL = (
    "algorithm=ppo",
    "init=pretrained",
    "algorithm.rollouts_per_iteration=10",
    "algorithm.num_samples_per_prompt=2",
    "algorithm.temperature=0.7",
    "algorithm.batch_size=4",
    "algorithm.epochs=2",
    "algorithm.iterations=2",
    "algorithm.learning_rate=1e-5",
    "algorithm.final_learning_rate=1e-6",
    "algorithm.value_learning_rate=1e-5",
    "algorithm.kl_coef=0.1",
    "algorithm.kl_target=1",
    "algorithm.entropy_coef=0.01",
    "algorithm.value_layers=1",
    "algorithm.trainable_layers=1",
    "algorithm.lora_rank=2",
    "algorithm.micro_batch_tokens=24",
    "runtime.checkpoint_seconds=1e6",
)
# How far apart weights in float32 may come to lie; the learning rate is 1e-5.
FAR = {"all": 4e-5, "top": 5e-6, "lora": 1e-7}
CELLS = tuple(product(("all", "top", "lora"), ("float32", "bfloat16")))


def rollouts() -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(5):
        prompt = Prompt(f"t{number}", tuple(range(20, 24 + number)))
        for sample in range(2):
            length = 2 + (3 * number + 2 * sample) % 6
            ids = tuple(torch.randint(2, 268, (length,), generator=generator).tolist())
            completion = Completion(prompt.problem_id, sample, ids, (-0.5,) * length, "eos", "")
            rewards = (0.0,) * (length - 1) + (float(sample),)
            made.append(Rollout(prompt, completion, None, False, rewards))
    return made


@dataclass(frozen=True)
class Learnt:
    """What became of a policy in an iteration, as one of the processes has it."""

    metrics: list[dict[str, Any]]  # of the assessment, of each step, and of another assessment
    before: dict[str, np.ndarray]  # the tokens that were learnt from
    after: dict[str, np.ndarray]  # the same ones, assessed once more
    weights: dict[str, np.ndarray]  # of the policy in use at the end
    started: str  # the hash of the policy in use at the beginning


Results = dict[tuple[str, str], Learnt]  # of each of CELLS


def learn(process: Process, folder: str) -> Results:
    """In each of CELLS two epochs on the rollouts, from models/tiny on.

    Three processes gather it layer by layer, as a large model.
    """
    torch.set_num_threads(1)  # earlier runs of this process may have had more
    with pytest.MonkeyPatch.context() as patch:
        if process.size == 3:
            patch.setattr(shards, "LARGE", 1)
        return {cell: learn_cell(process, Path(folder) / "-".join(cell), *cell) for cell in CELLS}


def learn_cell(process: Process, folder: Path, trainable: str, dtype: str) -> Learnt:
    config = small_config(
        folder / "outputs",
        *SMALL,
        f"algorithm.trainable={trainable}",
        f"model.compute_dtype={dtype}",
    )
    with job_of(config, str(TINY), folder, process=process) as job:
        ppo = PPO(job, config.algorithm)
        ppo.trainer.state.iteration = 1
        started = weights_hash(ppo.trainer.model.in_use(dtype))
        experience = ppo.compute_advantages(ppo.exploration.explored(rollouts()))
        ppo.update(experience)
        again = ppo.compute_advantages(ppo.exploration.explored(rollouts()))
        weights = ppo.trainer.model.in_use("float32").state_dict()
        metrics = process.first(lambda: reproducible(job.run.metrics))
    before, after, weights = (
        {name: tensor.numpy() for name, tensor in tensors.items()}
        for tensors in (token_data(experience), token_data(again), weights)
    )
    return Learnt(metrics, before, after, weights, started)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Results]]:
    """What each of so many ranks has learnt; of 0, what a process alone has."""

    @cache
    def by(size: int) -> list[Results]:
        folder = str(tmp_path_factory.mktemp("ranks"))
        return in_ranks(size, learn, folder, timeout=300) if size else [learn(ALONE, folder)]

    return by


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@pytest.mark.slow
def test_a_mesh_of_one_learns_the_same_bits_as_a_process_alone(
    learnt: Callable[[int], list[Results]],
) -> None:
    for cell, expected in learnt(0)[0].items():
        if cell[1] == "float32":  # in bfloat16, autocast keeps more of a layer in float32
            assert same(vars(learnt(1)[0][cell]), vars(expected)), cell


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_learn_what_one_process_does(
    learnt: Callable[[int], list[Results]], size: int
) -> None:
    first, *others = learnt(size)
    for cell, expected in learnt(1)[0].items():
        found = first[cell]
        assert all(same(vars(other[cell]), vars(found)) for other in others), cell
        # bfloat16 has 8 bits, and rounds rows of another length otherwise
        near = {"rtol": 1e-5, "atol": 1e-5} if cell[1] == "float32" else {"rtol": 0.1, "atol": 0.3}
        for name, tokens in expected.before.items():
            np.testing.assert_allclose(found.before[name], tokens, **near, err_msg=f"{cell} {name}")
        assert len(found.metrics) == len(expected.metrics) == 1 + 6 + 1  # the steps are six
        for number, (theirs, its) in enumerate(zip(found.metrics, expected.metrics, strict=True)):
            assert theirs.keys() == its.keys()
            if cell[1] == "float32":
                # From the second step on, Adam has made steps of what was rounding, wherever a
                # gradient is nothing else: among all weights there are such.
                rel = 1e-5 if number < 2 else 1e-4 if cell[0] == "all" else 2e-5
                assert theirs == pytest.approx(its, rel=rel, abs=1e-5), (cell, number)
        for name, weight in expected.weights.items():
            # A gradient that is nothing but rounding takes as large a step as any other.
            far = FAR[cell[0]] if cell[1] == "float32" else 2 * 6e-5
            np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=far)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_the_reference_is_where_the_policy_began(
    learnt: Callable[[int], list[Results]], size: int
) -> None:
    alone = learnt(0)[0]
    for cell, found in learnt(size)[0].items():
        assert found.started == alone[cell].started, cell  # whoever holds it, the same bits
        first, *steps, last = found.metrics
        assert first["pg/kl"] == 0.0, cell
        assert np.array_equal(found.before["ref_logprobs"], found.before["old_logprobs"])
        assert len(steps) == 6
        assert last["pg/kl"] != 0.0, cell
        assert np.array_equal(found.after["ref_logprobs"], found.before["ref_logprobs"]), cell
