"""A model that is named by its path alone has nothing of the default one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.config.model import ModelConfig, ResourcesConfig
from reasonrl.config.resolve import resolve
from reasonrl.pipeline.planner import with_sizes
from tests.helpers.configs import ROOT, TINY


def model(*overrides: str) -> ModelConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", list(overrides)), overrides).model


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Qwen2-0.5B", "Qwen2-0.5B"),
        ("owner/name", "name"),
        ("/some/my model/", "my-model"),
        ("/some/model.gguf", "model.gguf"),
    ],
)
def test_it_has_its_own_name_and_no_other_model_s_size(path: str, name: str):
    own = model(f"model.path='{path}'")
    assert (own.name, own.num_parameters, own.shape) == (name, None, None)
    assert own.resources == ResourcesConfig(gpus=1, cpus=8, memory_gb=64, hours=24.0)


def test_what_the_command_says_of_it_counts():
    said = [
        "model.path=/a/b",
        "model.name=mine",
        "model.num_parameters=7",
        "model.resources.cpus=2",
    ]
    own = model(*said)
    assert (own.name, own.num_parameters) == ("mine", 7)
    assert own.resources == ResourcesConfig(gpus=1, cpus=2, memory_gb=64, hours=24.0)


def test_a_model_that_is_chosen_may_lie_elsewhere():
    assert model("model=7b", "model.path=/data/x") == replace(model("model=7b"), path="/data/x")


def test_its_sizes_are_those_of_its_config():
    own = with_sizes(model(f"model.path={TINY}"), str(TINY))
    assert own.num_parameters == 985_728
    assert own.shape is not None
    assert own.shape.num_hidden_layers == 4
    told = model(f"model.path={TINY}", "model.num_parameters=7")
    assert with_sizes(told, str(TINY)) == told
