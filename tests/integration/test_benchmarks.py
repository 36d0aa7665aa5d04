"""What is to be run on a GPU runs through without one, and docs/scaling.md has what is computed;
what is measured beside TRL is an iteration of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import ppo, ranks, scaling
from benchmarks.gpu import random_model
from benchmarks.trl import llama_config
from reasonrl.config.model import ShapeConfig
from reasonrl.policy.policy import shape_of
from reasonrl.types import Prompt
from tests.helpers.configs import ROOT, TINY

PPO = [
    "algorithm.rollouts_per_iteration=16",
    "algorithm.batch_size=8",
    "algorithm.iterations=2",
    "algorithm.kl_horizon=1000",
    "algorithm.value_layers=2",
    "algorithm.lora_rank=4",
    "dataset.max_new_tokens=16",
]
FEW = ["--model", "tiny", "--repeats", "1"]


def measured(folder: Path, what: str, *arguments: str, processes: int = 1) -> dict[str, Any]:
    """What ``python -m benchmarks.gpu`` writes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        *["-m", "benchmarks.gpu", what, *FEW, "--out", str(folder), *arguments],
    ]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads((folder / f"{what}-tiny-{processes}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "arguments", "number"),
    [
        ("learn", ["algorithm.batch_size=8"], "tokens_per_second"),
        ("ppo", PPO, "learnt_tokens_per_second"),
        ("sample", ["dataset.max_new_tokens=4"], "tokens_per_second"),
        ("refresh", [], "gb_per_second"),
    ],
)
def test_what_is_measured_on_a_gpu_runs_through_on_a_cpu(
    tmp_path: Path, what: str, arguments: list[str], number: str
) -> None:
    found = measured(tmp_path, what, *arguments)
    assert (found["what"], found["model"], found["processes"]) == (what, "tiny", 1)
    assert found["parameters"] == 985_728
    assert found["settings"] == arguments
    assert found[number] > 0
    assert found["planned_gb"] > 0
    if not torch.cuda.is_available():
        assert found["gpu"] is found["peak_gb"] is found["peak_of_plan"] is None


@pytest.mark.slow
def test_several_processes_measure_together(tmp_path: Path) -> None:
    found = measured(tmp_path, "learn", "algorithm.batch_size=8", processes=2)
    assert found["processes"] == 2
    assert found["tokens_per_step"] == 8 * 250


def test_processes_are_compared_turn_by_turn() -> None:
    """A turn in which the machine is busy is slow for both, and counts as one of several."""
    turns = [
        ({"x": (4.0, 3.0)}, {"x": (2.0, 1.5)}),
        ({"x": (40.0, 3.0)}, {"x": (25.0, 2.0)}),
        ({"x": (5.0, 3.0)}, {"x": (2.5, 1.0)}),
    ]
    assert ranks.compared("x", turns) == {
        "seconds_of_one": 5.0,
        "seconds_of_several": 2.5,
        "speedup": 2.0,
        "cpu_speedup": 2.0,
    }


def test_random_weights_have_the_shape_asked_for() -> None:
    shape = shape_of(str(TINY))
    assert shape is not None
    model = random_model(shape)
    assert model.num_parameters() == 985_728
    assert model.lm_head.weight is model.model.embed_tokens.weight
    logits = model(torch.arange(8)[None]).logits
    assert logits.isfinite().all()
    assert random_model(shape, meta=True).device.type == "meta"
    untied = ShapeConfig(64, 96, 2, 4, 2, 50, tie_word_embeddings=False)
    assert random_model(untied).num_parameters() == untied.num_parameters


@pytest.mark.parametrize(
    ("algorithm", "changed"), [("ppo", {"value_layers": 1}), ("grpo", {}), ("rloo", {})]
)
def test_our_iteration_beside_trl_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, changed: dict[str, int]
) -> None:
    """A smaller one: 8 completions of 8 tokens, whose policy moves in its one step."""
    monkeypatch.setattr(ppo, "COMPLETIONS", 8)
    monkeypatch.setattr(ppo, "NEW_TOKENS", 8)
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).eval()
    before = model.lm_head.weight.clone()
    prompts = [Prompt(str(i), tuple(range(i, i + 32))) for i in range(2)]
    ours = ppo.our_ppo(model, prompts, algorithm, 4, changed, tmp_path)
    assert ppo.iterate(ours) == 8 * 8
    assert ours.trainer.steps == 1
    assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.slow
def test_the_page_on_scaling_has_the_tables_that_are_computed() -> None:
    if not scaling.DATA.is_dir():
        pytest.skip(f"{scaling.DATA} isn't there: set REASONRL_DATA to the folder that holds it")
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table: ") == 2
    assert scaling.with_tables(page) == page, "run python -m benchmarks.scaling --write"
