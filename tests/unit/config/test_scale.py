"""conf/scale and conf/by_scale: what a model's scale implies, and that the command line wins."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.algorithm.rcrl import RCRLConfig
from reasonrl.config.algorithm.reward_model import RewardModelConfig
from reasonrl.config.identity import decisive, identity
from reasonrl.config.learner import learners
from reasonrl.config.resolve import resolve, resolve_evaluation
from reasonrl.config.schema import TrainConfig
from reasonrl.util.errors import UserError
from tests.unit.config.test_config import CONF, composed, train

SCALES = {
    "tiny": "small",
    "small": "small",
    "smollm2-135m": "medium",
    "smollm2-360m": "medium",
    "qwen2.5-0.5b": "medium",
    "qwen2.5-1.5b": "medium",
    "llama-3.2-1b": "medium",
    "7b": "paper",
    "13b": "paper",
}
# Data set, K of evaluations, seconds between checkpoints.
PROTOCOLS = {
    "small": ("stories", 16, 30),
    "medium": ("stories", 16, 30),
    "paper": ("gsm8k", 96, 1800),
}
# Epochs, batch size, learning rate at its peak and at the end.
LEARNERS = {
    "small": (4, 16, 1e-3, 1e-5),
    "medium": (3, 32, 5e-5, 5e-6),
    "paper": (4, 128, 2e-5, 2e-7),
}
REWARD_MODELS = {"small": (3e-5, 3e-6), "medium": (3e-5, 3e-6), "paper": (1e-5, 1e-6)}
EI = {"small": (2, [8]), "medium": (2, [8]), "paper": (4, [96])}
PPO = {
    "small": {
        "iterations": 20,
        "epochs": 2,
        "batch_size": 256,
        "learning_rate": 2e-4,
        "final_learning_rate": 2e-5,
        "temperature": 1.0,
        "gae_lambda": 1.0,
        "value_layers": 2,
        "value_learning_rate": 1e-3,
        "trainable": "all",
        "validate_every": 5,
    },
    "paper": {
        "iterations": 62,
        "epochs": 4,
        "batch_size": 256,
        "learning_rate": 1e-6,
        "final_learning_rate": 1e-7,
        "temperature": 0.7,
        "gae_lambda": 0.95,
        "value_layers": 4,
        "value_learning_rate": 1e-5,
        "trainable": "lora",
        "lora_rank": 128,
        "validate_every": 6,
    },
}
PPO["medium"] = PPO["small"] | {
    "learning_rate": 1e-5,
    "final_learning_rate": 1e-6,
    "value_learning_rate": 1e-4,
}

ALGORITHMS = ("sft", "ei", "ppo", "rcrl", "sample", "steps", "orm", "sorm")
INITS = ("pretrained", "sft", "ei")
REWARDS = ("sparse", "dense", "orm", "sorm")
one_of_each = pytest.mark.parametrize("model", ["tiny", "qwen2.5-0.5b", "7b"])
every_model = pytest.mark.parametrize("model", SCALES)


@cache
def config(*overrides: str) -> TrainConfig:
    return train(*overrides)


def rates(learner: Any) -> tuple[float, float]:
    return learner.learning_rate, learner.final_learning_rate


def test_every_model_has_a_scale():
    found = {name: composed(f"model={name}").scale.name for name in SCALES}
    assert found == SCALES


@every_model
def test_data_set_evaluation_and_checkpoints_follow_the_model(model: str):
    one = config(f"model={model}")
    found = (
        one.dataset.name,
        one.evaluation.num_samples_per_prompt,
        one.runtime.checkpoint_seconds,
    )
    assert found == PROTOCOLS[SCALES[model]]
    evaluation = resolve_evaluation(composed(f"model={model}", name="evaluate"))
    assert evaluation.dataset == one.dataset
    assert evaluation.evaluation.num_samples_per_prompt == 96
    assert evaluation.runtime.checkpoint_seconds == one.runtime.checkpoint_seconds


def assert_learners_follow(scale: str, one: TrainConfig) -> None:
    """PPO isn't among them, and has a test of its own; RCRL has its own number of epochs."""
    for key, learner in learners(one):
        if isinstance(learner, RewardModelConfig):
            assert rates(learner) == REWARD_MODELS[scale], key
            continue
        epochs, batch_size, *both = LEARNERS[scale]
        epochs = 2 if isinstance(learner, RCRLConfig) else epochs
        assert (learner.epochs, learner.batch_size, *rates(learner)) == (epochs, batch_size, *both)
        if isinstance(learner, EIConfig):
            assert (learner.rounds, learner.num_samples_per_prompt) == EI[scale], key


@every_model
def test_a_learner_follows_the_model_wherever_it_stands(model: str):
    one = config(f"model={model}", "algorithm=rcrl", "init=ei", "reward=orm")
    assert {key for key, _ in learners(one)} == {
        *("init.sft", "init.ei", "algorithm", "algorithm.policy", "reward.model", "reward.policy")
    }
    assert_learners_follow(SCALES[model], one)


@one_of_each
@pytest.mark.parametrize("algorithm", ["sft", "ei", "orm", "sorm"])
def test_a_learner_follows_the_model_whatever_it_learns(algorithm: str, model: str):
    assert_learners_follow(SCALES[model], config(f"model={model}", f"algorithm={algorithm}"))


@every_model
def test_ppo_follows_the_model(model: str):
    ppo = config(f"model={model}", "algorithm=ppo", "init=sft").algorithm
    expected = PPO[SCALES[model]]
    assert {name: getattr(ppo, name) for name in expected} == expected


@pytest.mark.slow
@one_of_each
def test_all_algorithms_starts_and_rewards_resolve(model: str):
    """Hydra takes a tenth of a second for a composition; the reward doesn't depend on the rest."""
    rewards = {name: composed(f"model={model}", f"reward={name}").reward for name in REWARDS}
    for algorithm, init in {*itertools.product(ALGORITHMS, INITS)} - {("sft", "sft")}:
        one = composed(f"model={model}", f"algorithm={algorithm}", f"init={init}")
        for one.reward in rewards.values():
            assert resolve(one).algorithm.name == algorithm


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("algorithm.learning_rate=1e-5", "algorithm.learning_rate", 1e-5),
        ("init.sft.epochs=1", "init.sft.epochs", 1),
        ("algorithm.num_samples_per_prompt=[4]", "algorithm.num_samples_per_prompt", [4]),
        ("algorithm.rounds=5", "algorithm.rounds", 5),
        ("dataset=stories", "dataset.name", "stories"),
        ("dataset=svamp", "dataset.name", "svamp"),
        ("evaluation.num_samples_per_prompt=7", "evaluation.num_samples_per_prompt", 7),
        ("runtime.checkpoint_seconds=60", "runtime.checkpoint_seconds", 60),
    ],
)
@pytest.mark.parametrize("model_first", [True, False])
def test_the_command_line_wins(override: str, key: str, value: object, *, model_first: bool):
    said = ["model=7b", override] if model_first else [override, "model=7b"]
    found: object = config(*said)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_another_scale_may_be_taken():
    one = config("model=smollm2-135m", "scale=paper")
    assert (one.model.name, one.dataset.name) == ("smollm2-135m", "gsm8k")
    assert rates(one.init.sft) == (2e-5, 2e-7)
    other = config("scale=small", "model=smollm2-135m", "algorithm=ppo")
    assert (other.dataset.name, rates(other.algorithm)) == ("stories", (2e-4, 2e-5))


def test_an_experiment_wins_over_the_scale():
    one = config("experiment=svamp-smollm2")
    assert (one.dataset.name, rates(one.algorithm)) == ("svamp", (5e-5, 5e-6))
    assert one.algorithm.batch_size == 16
    large = config("experiment=svamp-smollm2", "model=7b")
    assert (large.dataset.name, large.evaluation.num_samples_per_prompt) == ("svamp", 8)


@pytest.mark.parametrize("model", ["7b", "13b"])
def test_the_paper_s_runs_from_the_pretrained_model(model: str):
    ei = config("experiment=paper-ei-pretrained", f"model={model}")
    ppo = config("experiment=paper-ppo-pretrained", f"model={model}", "dataset=svamp")
    assert (ei.model.name, ei.init.name, ei.dataset.name) == (model, "pretrained", "gsm8k")
    assert (ppo.model.name, ppo.init.name, ppo.dataset.name) == (model, "pretrained", "svamp")
    assert isinstance(ei.algorithm, EIConfig)
    assert (ei.algorithm.rounds, ei.algorithm.num_samples_per_prompt) == (4, [16, 96])
    assert isinstance(ppo.algorithm, PPOConfig)
    expected = PPO["paper"] | {"temperature": 0.2}
    assert {name: getattr(ppo.algorithm, name) for name in expected} == expected
    assert ei.dataset.num_exemplars == ppo.dataset.num_exemplars == 2


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model=7b", "scale=small"], "init.sft"),
        (["model=7b", "algorithm.learning_rate=1e-4"], "algorithm"),
        (["model=llama-3.2-1b", "reward=orm", "reward.policy.learning_rate=1e-3"], "reward.policy"),
        (
            ["model=13b", "algorithm=rcrl", "algorithm.policy.learning_rate=2e-4"],
            "algorithm.policy",
        ),
        (
            [
                "model=7b",
                "algorithm=ppo",
                "algorithm.learning_rate=2e-4",
                "algorithm.trainable=top",
            ],
            "algorithm",
        ),
    ],
)
def test_a_small_model_s_rate_is_refused_for_a_large_one(overrides: list[str], key: str):
    told = re.escape(f"Pass {key}.learning_rate=1e-5 {key}.final_learning_rate=1e-6")
    with pytest.raises(
        UserError, match=rf"^{re.escape(key)}.learning_rate=.* small models\. {told}"
    ):
        train(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=7b", "algorithm=ppo", "algorithm.learning_rate=2e-4"],  # LoRA
        ["model=7b", "algorithm=orm", "algorithm.trainable=head", "algorithm.learning_rate=1e-3"],
        ["model=7b", "algorithm.learning_rate=9.9e-5"],
        ["model=qwen2.5-0.5b", "scale=small"],
        ["model=7b", "scale=small", "model.num_parameters=null"],
    ],
)
def test_other_rates_are_taken(overrides: list[str]):
    train(*overrides)


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def test_a_sweep_over_models_takes_the_data_set_s_folder(loader: ConfigLoader):
    """Hydra checks the keys of a sweep's command against the default data set."""
    said = ["model=7b,13b", "dataset.path=somewhere"]
    master: DictConfig = loader.load_configuration("train", said, RunMode.MULTIRUN)
    for model in ("7b", "13b"):
        point = loader.load_sweep_config(master, [f"model={model}", "dataset.path=somewhere"])
        assert (point.dataset.name, point.dataset.path) == ("gsm8k", "somewhere")


def test_generated_problems_have_no_folder():
    with pytest.raises(UserError, match=r"dataset\.path=x must be null with dataset=stories.*Pass"):
        train("dataset.path=x")


def test_a_data_set_s_folder_and_its_scale_are_no_part_of_an_identity():
    names = {
        identity(decisive(config("model=7b", *said)))
        for said in ([], ["dataset.path=x"], ["scale=paper"])
    }
    assert len(names) == 1
    plain = dataclasses.replace(config(), evaluation=config("model=7b").evaluation)
    assert identity(decisive(plain)) == identity(decisive(config()))
