"""Checkpoints of several processes: each writes its shards, and any number of them goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning import checkpoint
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.policy.shards import shard, structure, whole_policy
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.errors import UserError
from tests.helpers.ranks import in_ranks

pytestmark = pytest.mark.slow

CONFIG = LlamaConfig(
    vocab_size=13,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=True,
)
SETTINGS = LearnerConfig(
    epochs=1,
    batch_size=6,
    learning_rate=0.01,
    final_learning_rate=0.001,
    warmup_fraction=0.25,
    weight_decay=0.1,
    max_grad_norm=1.0,
    micro_batch_tokens=100,
)
BUFFER = {"returns": torch.tensor([0.5, -1e-9]), "lengths": torch.tensor([3, 1])}


@dataclass
class Run:
    """A run of eight steps in a folder of its own; it is in one process or in several."""

    process: Process
    folder: Path
    losses: list[float] = field(default_factory=list)
    drawn: float = 0.0  # the random number that the process drew last, after each step one

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        model = (
            LlamaForCausalLM(CONFIG)
            if self.process.is_main
            else structure(CONFIG, GenerationConfig(), torch.float32)
        )
        model.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        model.model.layers[0].input_layernorm.requires_grad_(False)
        if self.process.mesh is not None:
            shard(model, self.process, torch.float32)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        norms = [p for name, p in trained.items() if "norm" in name]
        others = [p for name, p in trained.items() if "norm" not in name]
        self.model = model
        self.checkpoints = Checkpoints(self.folder / "checkpoints", process=self.process)
        self.optimization = Optimization(
            model,
            [Group(others, 0.01), Group(norms, 0.002, "norm_learning_rate")],
            SETTINGS,
            8,
            name="ppo",
            checkpoints=self.checkpoints,
            checkpoint_seconds=1e9,
            log=MetricsLog(self.folder / "metrics.jsonl", process=self.process),
            process=self.process,
        )
        torch.manual_seed(self.process.rank)

    def learn(self, until: int) -> Run:
        """Takes steps, of six rows each, of which each process has its share."""
        for step in range(self.optimization.steps, until):
            rows = torch.randint(13, (6, 5), generator=torch.Generator().manual_seed(step))
            ids = torch.tensor(self.process.shard(rows.tolist()))
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            self.losses.append(self.process.sum(loss.detach()).item() / self.process.size)
            self.optimization.step()
            self.model.get_buffer("taken").add_(1)
            self.drawn = torch.rand(()).item()
        return self

    def save(self) -> None:
        self.optimization.save({"losses": self.losses}, BUFFER)

    def resume(self) -> Run:
        state, buffer = self.optimization.resume()
        assert {name: tensor.tolist() for name, tensor in buffer.items()} == {
            "returns": [0.5, pytest.approx(-1e-9, rel=1e-6)],
            "lengths": [3, 1],
        }
        self.losses = state["losses"]
        return self

    def result(self) -> dict[str, Any]:
        tensors = {
            name: (t.full_tensor() if isinstance(t, DTensor) else t).numpy()
            for name, t in self.model.state_dict().items()
        }
        rates = self.optimization.learning_rate
        return {
            "losses": self.losses,
            "weights": tensors,
            "learning_rate": rates,
            "drawn": self.drawn,
        }


def go_on(process: Process, folders: list[Path]) -> list[dict[str, Any]]:
    """Goes on from where others have saved, to the end."""
    return [Run(process, folder).resume().learn(8).result() for folder in folders]


def of_two(process: Process, folder: Path) -> dict[str, Any]:
    """All that is asked of two processes."""
    run = Run(process, folder / "straight").learn(8)
    found: dict[str, Any] = {"straight": run.result()}
    policy = whole_policy(run.model, torch.float32, process)
    if policy is not None:
        policy.save_pretrained(folder / "policy")
    for name in ("saved", "damaged", "full"):
        run = Run(process, folder / name).learn(2)
        run.save()
        run.learn(4).save()
    checkpoint._FILE_BYTES, bytes_before = 2000, checkpoint._FILE_BYTES
    Run(process, folder / "parts").learn(4).save()
    checkpoint._FILE_BYTES = bytes_before
    found["resumed"] = go_on(process, [folder / "saved", folder / "parts", folder / "alone"])

    if process.is_main:
        path = folder / "damaged/checkpoints/step-00000004/shard-00002-model-00001-of-00001"
        with open(f"{path}.safetensors", "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\xff")
    process.barrier()
    warnings: list[str] = []
    checkpoint.logger.warning = lambda *words: warnings.append(words[0] % words[1:])  # type: ignore[method-assign]
    used = Checkpoints(folder / "damaged/checkpoints", process=process).latest()
    found["damaged"] = used and used.step, warnings

    run, fsync = Run(process, folder / "full").resume(), os.fsync
    run.learn(5)
    if process.rank == 1:
        os.fsync = _refuse
    try:
        run.save()
    except UserError as error:
        found["full"] = str(error)
    os.fsync = fsync
    found["full_left"] = sorted(p.name for p in (folder / "full/checkpoints").iterdir())
    process.barrier()
    run.save()
    found["full_later"] = sorted(p.name for p in (folder / "full/checkpoints").iterdir())
    return found


def _refuse(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(process: Process, folder: Path) -> None:
    """Is killed before the checkpoint of its fourth step has its name."""
    run = Run(process, folder).learn(2)
    run.save()
    checkpoint.end_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    run.learn(4).save()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """One process's run, which was never stopped; another one's checkpoint is left in ``alone``."""
    run = Run(ALONE, folder / "alone").learn(4)
    run.save()
    return Run(ALONE, folder / "alone-straight").learn(8).result()


@pytest.fixture(scope="module")
def two(folder: Path, alone: dict[str, Any]) -> list[dict[str, Any]]:
    assert alone
    found: list[dict[str, Any]] = in_ranks(2, of_two, folder)
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest between two runs' losses, relative, and their weights, absolute."""
    assert len(one["losses"]) == len(other["losses"]) == 8
    assert one["weights"].keys() == other["weights"].keys()
    assert one["learning_rate"] == other["learning_rate"]
    losses = [abs(a / b - 1) for a, b in zip(one["losses"], other["losses"], strict=True)]
    weights = [
        float(abs(one["weights"][name] - tensor).max()) for name, tensor in other["weights"].items()
    ]
    return max(losses + weights)


def test_two_go_on_to_the_bit_as_if_never_stopped(two: list[dict[str, Any]]) -> None:
    for found in two:
        for resumed in found["resumed"][:2]:
            assert difference(resumed, found["straight"]) == 0.0
        assert found["straight"]["weights"]["taken"] == 8


def test_each_goes_on_with_its_own_random_numbers(two: list[dict[str, Any]]) -> None:
    drawn = [found["straight"]["drawn"] for found in two]
    assert drawn[0] != drawn[1]
    for own, found in zip(drawn, two, strict=True):
        assert [resumed["drawn"] for resumed in found["resumed"][:2]] == [own, own]


def test_two_go_on_from_what_one_has_saved(
    two: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for found in two:
        assert 0.0 < difference(found["resumed"][2], alone) < 1e-6


def test_one_and_three_go_on_from_what_two_have_saved(
    folder: Path, two: list[dict[str, Any]]
) -> None:
    (one,) = go_on(ALONE, [folder / "saved"])
    assert difference(one, two[0]["straight"]) < 1e-6
    for size in (1, 3):
        for (found,) in in_ranks(size, go_on, [folder / "saved"]):
            assert difference(found, two[0]["straight"]) < 1e-6


@pytest.mark.usefixtures("two")
def test_what_is_too_large_for_one_file_is_in_several(folder: Path) -> None:
    path = folder / "parts/checkpoints/step-00000004"
    parts = {file.name.split("-of-")[0] for file in path.glob("shard-*")}
    assert parts == {f"shard-0000{n}-model-0000{part}" for n in (1, 2) for part in (1, 2, 3, 4)}


@pytest.mark.usefixtures("two")
def test_a_folder_of_two_holds_safetensors_and_json(folder: Path) -> None:
    path = folder / "saved/checkpoints/step-00000004"
    shards = [f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)]
    others = ["buffer.safetensors", "manifest.json", "rng.safetensors", "state.json"]
    assert sorted(file.name for file in path.iterdir()) == sorted(others + shards)
    layer, tied = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"
    rows: dict[str, list[int]] = {layer: [], tied: []}
    for shard_name in shards:
        with safe_open(path / shard_name, framework="pt") as file:
            names = set(file.keys())
            for name in (layer, tied):
                for key in (f"model.{name}", f"optimizer.exp_avg.{name}"):
                    rows[name].append(file.get_slice(key).get_shape()[0])
        assert not {n for n in names if "lm_head" in n or "layers.0.input_layernorm" in n}
    assert rows == {layer: [6, 6, 6, 6], tied: [7, 7, 6, 6]}
    state = json.loads((path / "state.json").read_bytes())
    assert state["optimizer"]["state"][layer] == {"step": 4.0}
    assert [len(g["params"]) for g in state["optimizer"]["param_groups"]] == [15, 4]
    assert state["optimizer"]["param_groups"][0]["params"][0] == tied
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert sorted(manifest) == sorted({*others, *shards} - {"manifest.json"})


def test_a_damaged_shard_is_passed_over_by_all_alike(
    folder: Path, two: list[dict[str, Any]]
) -> None:
    path = folder / "damaged" / "checkpoints"
    wrong = "shard-00002-model-00001-of-00001.safetensors differs from its manifest"
    warning = f"{path}/step-00000004 is damaged ({wrong}); using {path}/step-00000002 instead"
    assert [found["damaged"] for found in two] == [(2, [warning]), (2, [warning])]


def test_one_process_full_disk_is_everybody_s_error_and_leaves_nothing(
    folder: Path, two: list[dict[str, Any]]
) -> None:
    path = folder / "full/checkpoints/step-00000005"
    for found in two:
        assert found["full"] == (
            f"path={path} must be writable; got No space left on device. "
            "Free some space there and run the same command again."
        )
        assert found["full_later"] == ["step-00000004", "step-00000005"]
    assert two[0]["full_left"] == ["step-00000002", "step-00000004"]


def test_killed_before_the_rename_the_older_one_is_used(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"rank [01]"):
        in_ranks(2, killed, tmp_path)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(left) == 2
    assert left[0].startswith(".step-00000004~")
    run = Run(ALONE, tmp_path).resume()
    assert (run.optimization.steps, len(run.losses)) == (2, 2)
    run.learn(3).save()
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000003"]


def test_a_policy_in_shards_is_saved_as_a_folder_that_transformers_loads(
    folder: Path, two: list[dict[str, Any]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    expected = two[0]["straight"]["weights"]
    for name, tensor in model.state_dict().items():
        assert (tensor.numpy() == expected[name]).all(), name
    assert "lm_head.weight" in expected
    assert model.lm_head.weight is model.model.embed_tokens.weight
