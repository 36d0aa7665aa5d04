"""conf/model: what each says of itself, and the plan of a run whose model isn't on this machine."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import CONFIG_MAPPING, PreTrainedModel

from reasonrl.cli.train import train
from reasonrl.config.identity import decisive, identity
from reasonrl.config.model import ResourcesConfig
from reasonrl.config.resolve import resolve
from reasonrl.config.sampler.transformers import TransformersConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline import model_checks
from reasonrl.pipeline import planner as planning
from reasonrl.pipeline.planner import Planner, plan
from reasonrl.pipeline.text import plan_table
from reasonrl.policy.policy import load_policy, load_tokenizer
from reasonrl.problems import load_problems
from reasonrl.problems.prompts import build_prompts
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT

NUM_PARAMETERS = {
    "tiny": 985_728,
    "small": 4_085_504,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen2.5-0.5b": 494_032_768,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-1.5b": 1_543_714_304,
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
}
FEW = [
    "dataset=stories",  # with any model
    "runtime.threads=1",  # more than there are cores to spare wait for each other
    "dataset.train_size=12",
    "dataset.reward_train_size=12",
    "dataset.test_size=10",
]


@pytest.fixture(autouse=True)
def _without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # model.path=models/tiny
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def _without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


def composed(outputs: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [f"runtime.outputs={outputs}", *overrides])


def configured(outputs: Path, *overrides: str) -> TrainConfig:
    return resolve(composed(outputs, *FEW, *overrides))


def test_every_model_is_here():
    assert {file.stem for file in (ROOT / "conf" / "model").glob("*.yaml")} == {*NUM_PARAMETERS}


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_every_model_says_what_it_is_and_asks_for(tmp_path: Path, name: str):
    model = configured(tmp_path, f"model={name}").model
    assert (model.name, model.num_parameters) == (name, NUM_PARAMETERS[name])
    gpus = {"tiny": 0, "small": 0, "7b": 4, "13b": 8}.get(name, 1)
    assert (model.resources.nodes, model.resources.gpus) == (1, gpus)
    assert model.resources.gpu_gb == 80
    # Adam's moments are written by way of the machine's memory: 8 bytes of each parameter.
    assert model.resources.memory_gb * 1e9 > 8 * model.num_parameters


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_number_of_parameters_is_that_of_the_weights(name: str):
    model = load_policy(f"models/{name}", "float32", torch.device("cpu")).model
    assert model.num_parameters() == NUM_PARAMETERS[name]


def test_identities_stay(tmp_path: Path):
    assert identity(decisive(resolve(composed(tmp_path)))) == "f19d5b46"


def test_an_older_configuration_is_read(tmp_path: Path):
    config = composed(tmp_path)
    older = OmegaConf.to_container(config)
    assert isinstance(older, dict)
    del older["model"]["resources"], older["model"]["num_parameters"]
    read = resolve(OmegaConf.create(older))
    assert read.model.num_parameters is None
    assert read.model.resources == ResourcesConfig(
        gpus=1, cpus=8, memory_gb=64, hours=24.0, nodes=1, gpu_gb=80
    )
    assert decisive(read) == decisive(resolve(config))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "7b",
            [
                "on a cluster each run asks for 4 GPUs, 32 CPUs, 192 GB of memory and 24 hours",
                "7b, 6,738,415,616 parameters: GB in each of 4 GPUs; 74 of 80 may be used",
                "about ",
                "meta-llama/Llama-2-7b-hf isn't ready on this machine: not checked",
            ],
        ),
        (
            "13b",
            [
                "on a cluster each run asks for 8 GPUs, 64 CPUs, 320 GB of memory and 24 hours",
                "13b, 13,015,864,320 parameters: GB in each of 8 GPUs; 74 of 80 may be used",
                "about ",
                "meta-llama/Llama-2-13b-hf isn't ready on this machine: not checked",
            ],
        ),
        (
            "tiny",
            ["on a cluster each run asks for 1 CPU, 4 GB of memory and 2 hours", "about "],
        ),
    ],
)
@pytest.mark.usefixtures("_without_a_network")
def test_a_dry_run_without_the_weights(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, lines: list[str]
):
    started = time.monotonic()
    train(composed(tmp_path / "outputs", *FEW, f"model={name}", "dry_run=true"))
    assert time.monotonic() - started < 20  # a second or two
    out = capfd.readouterr()
    shown = (out.out + out.err).splitlines()
    assert any(f"sft-{name}-pretrained-stories-s0" in line for line in shown)
    said = [line for line in shown if line.startswith(tuple(lines))]
    assert len(said) == len(lines)
    assert not (tmp_path / "outputs").exists()


def test_a_run_without_the_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(UserError, match="meta-llama/Llama-2-7b-hf must be a folder or"):
        plan(configured(tmp_path, "model=7b"))
    assert time.monotonic() - started < 20


def of_kind(tmp_path: Path, kind: str, *overrides: str) -> TrainConfig:
    """A run of a model that is there by its config alone: there are no weights in the folder."""
    config = CONFIG_MAPPING[kind](vocab_size=268, hidden_size=32, num_attention_heads=2)
    config.save_pretrained(tmp_path / kind)
    load_tokenizer("models/tiny").save_pretrained(tmp_path / kind)
    return configured(tmp_path / "outputs", f"model.path={tmp_path / kind}", *overrides)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("llama", ""),
        ("diffllama", "its logits are then off by "),
        ("stablelm", "it raises TypeError: "),
        ("falcon_h1", "it has layers of hybrid"),
        ("gemma2", "it has layers of sliding_attention"),
    ],
)
def test_what_is_read_otherwise_is_said_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
):
    own_copy = "each completion sampled holds its own copy of its prompt: " if why else ""
    with_prompt = "in learning each completion is read with its own prompt"
    sft = plan(of_kind(tmp_path, kind, "algorithm=sft"))
    assert sft.reading.startswith(own_copy + why)
    assert with_prompt not in sft.reading
    ppo = plan(of_kind(tmp_path, kind, "algorithm=ppo", "algorithm.value_layers=0"))
    is_packed = kind in ("llama", "diffllama", "stablelm")
    assert ppo.reading == sft.reading + ("" if is_packed else f"; {with_prompt}")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan_table(sft))
    assert ("holds its own copy of its prompt" in captured.get()) == bool(why)
    monkeypatch.setattr(TransformersConfig, "is_tried", False)  # as vLLM, which has its own code
    assert not plan(sft.config).reading


def test_an_architecture_that_is_not_read_right_is_refused_in_the_plan(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"got model_type=minimax, which doesn't\. By segments: it has layers of linear_att.* "
        r"With its own cache: it raises .*\. Take another model, such as Llama or Qwen",
    ):
        plan(of_kind(tmp_path, "minimax"))


@pytest.mark.parametrize("algorithm", ["ppo", "orm"])
def test_a_head_that_cannot_be_read_by_itself_is_refused_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
):
    def no_scale(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        return 2 * model.get_output_embeddings()(states)

    plan(configured(tmp_path, f"algorithm={algorithm}"))
    monkeypatch.setattr("reasonrl.policy.head.head_logits", no_scale)
    plan(configured(tmp_path, "algorithm=sft"))  # it reads the model's own logits
    with pytest.raises(UserError, match="got model_type=llama, which does something else to them"):
        plan(configured(tmp_path, f"algorithm={algorithm}"))


# Many similar runs.


def test_what_runs_have_in_common_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: Counter[str] = Counter()

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            calls[function.__name__] += 1
            return function(*arguments)

        return count

    for function in (load_problems, load_tokenizer, build_prompts):
        place = planning if function is load_problems else model_checks
        monkeypatch.setattr(place, function.__name__, counted(function))
    config, planner = configured(tmp_path, "algorithm=rcrl"), Planner()
    plans = [planner.plan(replace(config, seed=seed)) for seed in range(3)]
    # Train, validation, test. Their prompts with the exemplars of the pretrained model; and without
    # them for completions (EI, sample), steps twice as long, and RCRL's with a label.
    assert calls == {"load_problems": 3, "load_tokenizer": 1, "build_prompts": 3 * 4}
    assert len({one.run for one in plans}) == 3
    assert all(one.train is plans[0].train for one in plans)
    assert plan(replace(config, seed=2)) == plans[2]


def test_what_differs_is_checked_of_each(tmp_path: Path):
    """The context of 512 tokens holds 300 after a prompt, and not the 600 of continued steps."""
    planner, sizes = Planner(), ["dataset.num_exemplars=0", "dataset.max_new_tokens=300"]
    planner.plan(configured(tmp_path, "algorithm=sample", *sizes))
    with pytest.raises(UserError, match="must fit after the prompt"):
        planner.plan(configured(tmp_path, "algorithm=steps", *sizes))
