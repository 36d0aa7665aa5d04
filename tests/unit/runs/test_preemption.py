"""Told to stop by a signal, a run saves at its next boundary; its next attempt goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch.optim import AdamW

from reasonrl.learning.checkpoint import weights_hash
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.reward_models.model import RewardModel
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.preemption import (
    SIGNALS,
    Preempted,
    boundary,
    listening,
    received,
    requested,
    saving,
    with_boundary,
)
from reasonrl.runs.process import Process
from reasonrl.sampling import SamplingParams, TransformersEngine, rollouts
from reasonrl.types import Completion, Prompt
from reasonrl.util.progress import Progress
from tests.helpers.configs import small_config
from tests.helpers.kill_and_resume import differences


def tell(number: signal.Signals = signal.SIGUSR2) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _in_the_foreground() -> Iterator[None]:
    """Scripts start what is in their background to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- signals and boundaries


def test_handlers_are_there_inside_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening():
        inside = [signal.getsignal(number) for number in SIGNALS]
    assert before == [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]
    assert not set(inside) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_until_the_listening_ends(number: signal.Signals) -> None:
    with listening():
        assert (requested(), received()) == (False, None)
        tell(number)
        assert (requested(), received()) == (True, number)
    assert (requested(), received()) == (False, None)
    with listening():
        assert not requested()


def test_of_two_signals_the_first_counts() -> None:
    with listening():
        tell(signal.SIGUSR2)
        tell(signal.SIGTERM)
        assert received() == signal.SIGUSR2


@pytest.mark.parametrize("first", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_another_signal_ends_at_once(
    first: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "\nsaving at the next opportunity. Ctrl-C again ends at once, without.\n"
    with listening():
        tell(first)
        tell(signal.SIGTERM)  # says the same again
        assert received() == first
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)
    assert capfd.readouterr().err == (said if first == signal.SIGINT else "")


def test_listening_within_listening_changes_nothing() -> None:
    with listening():
        with listening():
            tell(signal.SIGTERM)
        assert received() == signal.SIGTERM
        with pytest.raises(Preempted), listening():
            boundary()
    assert not requested()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_who_was_started_to_ignore_ctrl_c_ignores_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            tell(signal.SIGINT)
            assert not requested()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_listening_ends_with_an_exception_too() -> None:
    def interrupted() -> None:
        with listening():
            tell()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    assert not requested()


@pytest.mark.parametrize(("due", "saves"), [(False, 0), (True, 1)])
def test_a_boundary_saves_what_is_due(due: bool, saves: int) -> None:
    saved: list[int] = []
    boundary(lambda: saved.append(1), due=due)
    assert len(saved) == saves


@pytest.mark.parametrize("due", [False, True])
def test_a_boundary_saves_and_stops_if_told_to(due: bool, caplog: pytest.LogCaptureFixture) -> None:
    saved: list[int] = []
    with listening(), caplog.at_level("INFO"):
        tell(signal.SIGTERM)
        with pytest.raises(Preempted, match="SIGTERM"):
            boundary(lambda: saved.append(1), due=due)
        with pytest.raises(Preempted):
            boundary()
    assert saved == [1]
    assert "told to stop by SIGTERM" in caplog.text


def test_a_signal_while_saving_is_for_the_next_boundary() -> None:
    """It came too late for what was saved to be all there is."""
    with listening():
        boundary(tell, due=True)
        with pytest.raises(Preempted):
            boundary()


@pytest.mark.parametrize(("error", "saves"), [(Preempted, 1), (ValueError, 0)])
def test_saving_is_for_what_is_preempted(error: type[Exception], saves: int) -> None:
    saved: list[int] = []
    with pytest.raises(error), saving(lambda: saved.append(1)):
        raise error
    assert len(saved) == saves


def test_progress_is_counted_before_it_is_heeded() -> None:
    counted: list[int] = []
    advance = with_boundary(counted.append)
    advance(3)
    with listening():
        tell()
        with pytest.raises(Preempted):
            advance(4)
    assert counted == [3, 4]


# --- runs

# Fine-tuned just so far that some of what is sampled is right. Nothing is saved but by a signal.
SIZES = ["dataset.train_size=24", "dataset.reward_train_size=24", "dataset.num_references=24"]
SIZES += ["dataset.validation_size=6", "dataset.test_size=4", "evaluation.num_samples_per_prompt=2"]
SIZES += ["dataset.max_new_tokens=32", "runtime.checkpoint_seconds=1e9"]
FROM_SFT = ["init=sft", "init.sft.batch_size=4", "init.sft.epochs=8"]

EI = ["rounds=2", "num_samples_per_prompt=[4]", "batch_size=8", "epochs=1"]
PPO = ["iterations=2", "rollouts_per_iteration=8", "num_samples_per_prompt=4", "batch_size=4"]
SAMPLE = ["sample.num_samples_per_prompt=2"]
STEPS = [*SAMPLE, "num_solutions_per_prompt=2", "num_continuations=2"]
LEARN = ["batch_size=16", "epochs=1"]
RUNS = {
    "sft": ["batch_size=8", "epochs=1"],
    "ei": EI,
    "ppo": [*PPO, "epochs=2"],
    "sample": ["num_samples_per_prompt=2"],
    "steps": STEPS,
    "rcrl": [*(f"policy.{option}" for option in EI), *STEPS, *LEARN],
    "orm": [*SAMPLE, *LEARN],
    "sorm": [*STEPS, *LEARN],
}


def plan_of(name: str, outputs: Path) -> Plan:
    first = [] if name == "sft" else FROM_SFT
    own = [f"algorithm={name}", *(f"algorithm.{option}" for option in RUNS[name])]
    return plan(small_config(outputs, *SIZES, *first, *own))


Moment = tuple[Any, ...]  # what was done; of its parts in one call, the last entry is the number


@dataclass
class Watch:
    """Notes the moments at which a signal may come, and sends one at those ``chosen``.

    told: how many moments there were when it was sent.
    """

    moments: list[Moment] = field(default_factory=list)
    chosen: Callable[[Moment], bool] = lambda _: False
    told: int | None = None

    def pass_by(self, *moment: Any) -> None:
        self.moments.append(moment)
        if self.told is None and self.chosen(moment):
            self.told = len(self.moments)
            tell()

    def steps(self) -> int:
        return sum(kind == "step" for kind, *_ in self.moments)

    def progress(self, *call: Any) -> Callable[[int], None]:
        """Of a call, given to it instead of its own."""
        numbers = iter(range(10**6))
        return lambda _: self.pass_by(*call, next(numbers))

    def attempt(self, planned: Plan, chosen: Callable[[Moment], bool]) -> bool:
        """An attempt at a run; whether it was preempted."""
        self.moments, self.chosen, self.told = [], chosen, None
        with listening():
            try:
                ensure_done(planned, Progress())
            except Preempted:
                assert self.told is not None
                after = [kind for kind, *_ in self.moments[self.told :]]
                assert after == []  # the step in work was the last one, or the completion
                return True
        return False


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Optimizer steps, completions that end, and those that a reward model judges."""
    watch = Watch()
    step, sample, judge = AdamW.step, TransformersEngine.sample, RewardModel.token_logits

    def watched_step(self: AdamW, *args: Any, **options: Any) -> Any:
        out = step(self, *args, **options)
        watch.pass_by("step")
        return out

    def watched_sample(
        self: TransformersEngine,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int,
        on_progress: Callable[[int], None],
    ) -> list[Completion]:
        asked = tuple(prompt.token_ids for prompt in prompts)
        of_policy = weights_hash(self.model)
        note = watch.progress("sample", of_policy, asked, params.num_samples_per_prompt, seed)

        def advance(n: int) -> None:
            note(n)
            on_progress(n)

        return sample(self, prompts, params, seed=seed, first=first, on_progress=advance)

    def watched_judge(
        self: RewardModel,
        completions: Sequence[Completion],
        problems: Any,
        on_progress: Callable[[int], None],
        process: Process,
    ) -> Any:
        note = watch.progress("judge", len(completions))

        def advance(n: int) -> None:
            note(n)
            on_progress(n)

        return judge(self, completions, problems, advance, process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "SHARD_SIZE", 40)
        patch.setattr(AdamW, "step", watched_step)
        patch.setattr(TransformersEngine, "sample", watched_sample)
        patch.setattr(RewardModel, "token_logits", watched_judge)
        yield watch


@dataclass(frozen=True)
class Straight:
    """Runs that were left alone, and the moments of each."""

    outputs: Path
    moments: dict[str, list[Moment]]

    def without(self, run: RunFolder, outputs: Path) -> None:
        """Copies them all but one to other outputs."""
        others = shutil.ignore_patterns(run.path.name)
        shutil.copytree(self.outputs, outputs, ignore=others)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, watch: Watch) -> Straight:
    outputs, moments = tmp_path_factory.mktemp("straight") / "outputs", {}
    for name in RUNS:
        planned = plan_of(name, outputs)
        for first in planned.prerequisites.values():
            ensure_done(first, Progress())
        assert not watch.attempt(planned, lambda _: False)
        moments[name] = [*watch.moments]
    return Straight(outputs, moments)


def check(planned: Plan, straight: Straight, attempts: int) -> None:
    """It is done, after so many attempts, and all is as if it had been left alone."""
    status = read_status(planned.run)
    assert status is not None
    assert (status.state, status.attempt, status.error) == ("done", attempts, None)
    assert differences(straight.outputs / "runs" / planned.run.path.name, planned.run.path) == []
    losses = [
        record["step"]
        for record in read_metrics(planned.run.metrics)
        if any(name.endswith("loss") for name in record)
    ]
    assert losses == sorted(set(losses))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_told_to_stop_everywhere_a_run_ends_as_if_left_alone(
    name: str, straight: Straight, watch: Watch, tmp_path: Path
) -> None:
    """At each optimizer step and in each shard, of which none is taken twice."""
    outputs = tmp_path / "outputs"
    planned = plan_of(name, outputs)
    straight.without(planned.run, outputs)
    seen: set[Moment] = set()

    def unseen(moment: Moment) -> bool:
        new = moment == ("step",) or (moment[-1] == 0 and moment not in seen)
        seen.add(moment)
        return new

    steps, attempts = 0, 1
    while watch.attempt(planned, unseen):
        status = read_status(planned.run)
        assert status is not None
        assert (status.state, status.attempt) == ("preempted", attempts)
        steps += watch.steps()
        attempts += 1
        assert attempts < 100, "it comes to new places without end"
    expected = straight.moments[name]
    assert steps == expected.count(("step",))
    calls = {moment for moment in expected if moment[-1] == 0}
    assert attempts == 1 + steps + len(calls)
    check(planned, straight, attempts)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_told_to_stop_at_any_moment_a_run_ends_as_if_left_alone(
    name: str, straight: Straight, watch: Watch, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    planned = plan_of(name, outputs)
    straight.without(planned.run, outputs)
    moments = len(straight.moments[name])
    number = random.Random(name).randrange(moments)
    assert watch.attempt(planned, lambda _: len(watch.moments) > number)
    assert not watch.attempt(planned, lambda _: False)
    check(planned, straight, attempts=2)


@pytest.mark.slow
def test_told_to_stop_while_sampling_ppo_keeps_its_steps(
    straight: Straight, watch: Watch, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    planned = plan_of("ppo", outputs)
    straight.without(planned.run, outputs)
    seen: set[Moment] = set()

    def unseen(moment: Moment) -> bool:
        new = moment[-1] == 0 and moment not in seen
        seen.add(moment)
        return new

    steps, attempts = 0, 1
    while watch.attempt(planned, unseen):
        steps += watch.steps()
        attempts += 1
    assert steps + watch.steps() == straight.moments["ppo"].count(("step",))
    check(planned, straight, attempts)
