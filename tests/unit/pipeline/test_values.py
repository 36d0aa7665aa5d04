"""The plan says what values the runs have, and where these are from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from reasonrl.cli.train import train
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.text import MAX_METHODS, methods, origin
from reasonrl.util.progress import console
from tests.helpers.configs import ROOT


def configured(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def test_the_values_of_a_scale_are_named_with_what_the_command_line_changes():
    configs = [configured("algorithm=ei", f"model={name}") for name in ("7b", "7b", "13b")]
    assert origin("paper (recalled)", configs, ["model=7b", "seed=1", "algorithm=ei"]) == (
        "7b, 13b: scale paper (recalled): gsm8k, evaluated with K=96"
    )
    said = ["dataset=svamp", "++algorithm.epochs=1", "experiment=x", "~tracking", "a.b=[1]"]
    assert origin("s", [configured(), configured("seed=1")], said) == (
        r"tiny: scale s: stories, evaluated with K=16; by the command line: dataset=svamp "
        r"++algorithm.epochs=1 experiment=x a.b=[1]"
    )
    two = [configured(), configured("dataset=svamp", "evaluation.num_samples_per_prompt=4")]
    assert origin("s", two, []) == (
        "tiny: scale s: stories, evaluated with K=16; svamp, evaluated with K=4"
    )


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["model=7b", "algorithm=ei"],
            "Expert Iteration: 4 rounds of K=96 at T=1, sparse reward; batches of 128, learning "
            "rate 2e-05 → 2e-07",
        ),
        (
            ["model=13b", "algorithm=ppo"],
            "PPO: 62 iterations of 1,024 rollouts, K=4 at T=0.7, 4 epochs, KL 0.05, sparse "
            "reward; batches of 256, learning rate 1e-06 → 1e-07, LoRA of rank 128",
        ),
        (
            ["algorithm=dr_grpo"],
            "dr_grpo: 20 iterations of 1,024 rollouts, K=8 at T=1, 2 epochs, KL 0, sparse reward; "
            "batches of 256, learning rate 0.0002 → 2e-05",
        ),
        (
            ["algorithm=rft"],
            "rft: 1 round of K=8 at T=0.7, sparse reward; batches of 16, learning rate 0.001 → "
            "1e-05",
        ),
        (
            ["algorithm=orm", "algorithm.trainable=head"],
            "outcome reward model: 1 epoch on right and wrong completions; batches of 64, "
            "learning rate 3e-05 → 3e-06, head trained",
        ),
        (["algorithm=sample"], "sampling: K=4 at T=1"),
    ],
)
def test_a_method_is_said_with_its_learner(overrides: list[str], text: str):
    assert list(methods([configured(*overrides)])) == [f"  {text}"]


def test_of_many_methods_the_first_are_said_each_once():
    rates = [f"{number}e-6" for number in range(3, MAX_METHODS + 6)]
    final = "algorithm.final_learning_rate=0"
    configs = [configured(f"algorithm.learning_rate={rate}", final) for rate in [*rates, "3e-6"]]
    *shown, rest = methods(configs)
    assert (len(shown), rest) == (MAX_METHODS, "  … and 3 more")
    assert shown[0].endswith("learning rate 3e-06 → 0")


@pytest.fixture
def _hydra() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


@pytest.mark.usefixtures("_hydra")
def test_a_dry_run_says_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    overrides = [f"runtime.outputs={tmp_path}", "dry_run=true", "algorithm.learning_rate=1e-5"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*overrides, "algorithm=ppo"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    config.algorithm.final_learning_rate = 1e-6
    with console.capture() as captured:
        train(config)
    assert (
        "tiny: scale small (ours, for models of 1 to 4 million parameters): stories, evaluated "
        f"with K=16; by the command line: runtime.outputs={tmp_path} algorithm.learning_rate=1e-5"
    ) in captured.get()
