"""Time on GPUs, from operations and from what is read; time on this machine is tested with runs."""

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.config.algorithm.base import Footprint, Work
from reasonrl.config.model import ShapeConfig
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline import estimate
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.text import how_long, needs
from reasonrl.runs.folder import run_folder
from reasonrl.types import Problem
from tests.helpers.configs import ROOT

P, LAYER, ADAPTERS = 6_738_415_616, 202_383_360, 319_815_680  # of 7B; LoRA of rank 128


def configured(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", ["model=7b", "dataset.max_new_tokens=256", *overrides]))


def shape(config: TrainConfig) -> ShapeConfig:
    assert config.model.shape is not None
    return config.model.shape


def planned(*overrides: str, has_model: bool = False) -> Plan:
    config = configured("dataset=stories", *overrides)
    problem = Problem("p", "q" * 250, "1", "s" * 500)  # of 100 and of 200 tokens
    run = run_folder(config)
    return Plan(config, run, {}, "", has_model, config.model.shape, [problem], [], [], [])


@pytest.mark.parametrize(
    ("run", "operations"),
    [
        (Footprint("all", "apart"), 8 * P),
        # Forwards, through 32 layers and these again, and the adapters' own gradients.
        (Footprint("lora", "apart", lora_rank=128), 2 * P + 4 * 32 * LAYER + 2 * ADAPTERS),
        (Footprint("top", "apart", trainable_layers=2), 2 * P + 4 * 2 * LAYER + 2 * 2 * LAYER),
        (Footprint("head", "never"), 2 * P),
        (Footprint("all", "while it learns", value_layers=4), 8 * P + 8 * 4 * LAYER),
    ],
)
def test_the_operations_of_learning_from_a_token(run: Footprint, operations: int) -> None:
    assert estimate.learning_operations(shape(configured()), run) == operations


def test_a_small_model_computes_nothing_again() -> None:
    small = shape(configured("model=qwen2.5-0.5b"))
    operations = estimate.learning_operations(small, Footprint("all", "apart"))
    assert operations == 6 * 494_005_120


def test_the_time_of_a_batch_of_completions() -> None:
    """Of 256 steps, 433 completions of 115 tokens, and 524,288 bytes of keys and values each."""
    config = configured()
    seconds = estimate.batch_seconds(config, shape(config), 433, 115.0)
    steps = 256 * (2 * P / (0.6 * 3.35e12) + 32 * 0.5e-3)
    cache = 433 * 115 * 115 / 2 * 524_288 / (0.6 * 3.35e12)
    computing = 433 * 115 * 2 * P / (0.35 * 989e12)
    assert seconds == pytest.approx(steps + cache + computing)
    assert seconds == pytest.approx(8.5, abs=0.1)


def test_the_time_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 examples of 300 tokens on four GPUs, then on eight; then 433 completions of 200."""
    four, eight = planned("algorithm=sft"), planned("algorithm=sft", "model.resources.nodes=2")
    monkeypatch.setattr(estimate, "work", lambda _: Work(examples=1000))
    assert estimate.gpu_seconds(four) == pytest.approx(1000 * 300 * 8 * P / (0.35 * 989e12) / 4)
    assert estimate.gpu_seconds(eight) == pytest.approx(estimate.gpu_seconds(four) / 2)
    monkeypatch.setattr(estimate, "work", lambda _: Work(readings=1000))
    assert estimate.gpu_seconds(four) == pytest.approx(1000 * 300 * 2 * P / (0.35 * 989e12) / 4)
    config = replace(four.config, dataset=replace(four.config.dataset, max_new_tokens=256))
    one = replace(four, config=config)
    monkeypatch.setattr(estimate, "work", lambda _: Work(completions=433))
    batch = estimate.batch_seconds(config, shape(config), 433, 200.0)
    assert estimate.gpu_seconds(one) == pytest.approx(batch / 4)
    monkeypatch.setattr(estimate, "work", lambda _: Work(completions=400, again=33))
    assert estimate.gpu_seconds(one) == pytest.approx(batch / 4)


def test_others_may_be_asked_in_the_place_of_questions_left_out() -> None:
    """DAPO, two iterations of 64, asks up to three times as many questions as it learns from."""
    found = estimate.work(
        planned(
            "algorithm=dapo", "algorithm.iterations=2", "algorithm.rollouts_per_iteration=64",
            "algorithm.batch_size=32", "algorithm.epochs=1", "algorithm.kl_horizon=64",
        )
    )  # fmt: skip
    assert found.again == 2 * 2 * 64
    assert found.examples == found.completions == 2 * 64


def test_what_needs_several_gpus_is_not_timed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Plan] = []
    takes = estimate.Range(60.0, 80.0)
    monkeypatch.setattr(estimate, "seconds", lambda runs, _: timed.extend(runs) or takes)
    monkeypatch.setattr(estimate, "gpu_seconds", lambda _: 1800.0)
    monkeypatch.setattr(estimate, "undone", list)
    large = planned("algorithm=sft", has_model=True)
    small = planned("algorithm=sft", "model=qwen2.5-0.5b", has_model=True)
    absent = planned("algorithm=ei", "model=qwen2.5-0.5b")
    first, second = how_long([large, small, absent])
    assert first == "about 60 to 80 seconds on this machine"
    assert second.startswith("about 60 minutes on the GPUs asked for, 2.5 GPU hours: computed")
    assert timed == [small]
    (only,) = how_long([large, small], here=False)
    assert only.startswith("about 60 minutes on the GPUs asked for, 2.5 GPU hours")


@pytest.mark.parametrize(
    ("seconds", "hours"), [(60.0, "0.067"), (8_000.0, "8.9"), (144_720.0, "161"), (2e6, "2,222")]
)
def test_hours_are_written_out(seconds: float, hours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On four GPUs."""
    monkeypatch.setattr(estimate, "gpu_seconds", lambda _: seconds)
    monkeypatch.setattr(estimate, "undone", list)
    (text,) = how_long([planned("algorithm=sft")], here=False)
    assert f"on the GPUs asked for, {hours} GPU hours: computed" in text


def test_a_model_of_unknown_size_has_no_time() -> None:
    unknown = replace(planned("algorithm=sft"), shape=None)
    assert list(how_long([unknown])) == []
    on_cpu = planned("algorithm=sft", "model.resources.gpus=0")
    assert list(how_long([on_cpu])) == []


def test_more_completions_at_a_time_than_have_room_are_warned_of() -> None:
    """EI samples 433 beside the weights, and PPO 382 beside its learner's state too."""
    many = "sampler.batch_size=1024"
    ei, ppo = (
        planned("algorithm=ei", many),
        planned("algorithm=ppo", "algorithm.value_layers=4", many),
    )
    _, warning, _ = needs([ei, ppo])
    assert "sampler.batch_size=1024 has no room beside the weights" in str(warning)
    assert str(warning).endswith("Pass sampler.batch_size=auto, or 382")
    for fitting in ("sampler.batch_size=433", "sampler.batch_size=auto"):
        assert len(list(needs([planned("algorithm=ei", fitting)]))) == 2


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (180.0, 360.0, "3 to 6 minutes"),
        (1.0, 20.0, "1 to 20 seconds"),
        (50.0, 120.0, "50 seconds to 2 minutes"),
        (180.0, 181.0, "3 minutes"),
    ],
)
def test_a_range_of_time(
    low: float, high: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "seconds", lambda *_: estimate.Range(low, high))
    monkeypatch.setattr(estimate, "undone", list)
    small = planned("algorithm=sft", "model=qwen2.5-0.5b", has_model=True)
    assert list(how_long([small])) == [f"about {text} on this machine"]


def test_the_fastest_and_the_median_step_are_taken_without_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    steps = iter([9.0, 0.25, 0.125, 0.5, 0.25, 0.25, 0.25, 0.25, 100.0])

    def step() -> None:
        nonlocal clock
        clock += next(steps)

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(estimate, "TIMED_SECONDS", 60.0)
    assert estimate.step_seconds(step) == estimate.Range(0.125, 0.25)
    monkeypatch.setattr(estimate, "TIMED_SECONDS", 1.0)
    steps = iter([9.0, 3.0, 5.0, 4.0, 100.0])  # a slow model has three
    assert estimate.step_seconds(step) == estimate.Range(3.0, 4.0)


@pytest.mark.parametrize(
    ("at_once", "takes"),
    [(1, (60.0, 120.0)), (2, (30.0, 60.0)), (3, (30.0, 60.0)), (8, (30.0, 60.0))],
)
def test_runs_at_a_time_share_the_cores(
    at_once: int, takes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10, 20 and 30 seconds on a quiet machine of four cores; the longest is the least."""
    each = [estimate.Range(low, 2 * low) for low in (10.0, 20.0, 30.0)]
    monkeypatch.setattr(estimate, "_seconds", lambda *_: each)
    monkeypatch.setattr(estimate, "usable_cores", lambda: 4)
    assert estimate.seconds([planned("algorithm=sft")], at_once) == estimate.Range(*takes)
