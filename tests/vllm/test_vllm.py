"""The engine on vLLM, on the CPU: ``make test-vllm``."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from reasonrl.config.sampler.vllm import VLLMConfig
from reasonrl.policy.policy import Policy, load_policy
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError
from tests.helpers.configs import SMALL, TINY
from tests.helpers.kill_and_resume import run_to_the_end, start

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
SETTINGS = VLLMConfig("vllm", "auto", 512, 0.4, None)
TEXTS = ("Q: Tom has 3 apples. Tom buys 4 apples. How many?\nA:", "Q: Ann has 5 pens.\nA:")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(str(TINY), "float32", CPU)


@pytest.fixture(scope="module")
def engine() -> Any:
    from reasonrl.sampling.vllm import VLLMEngine

    return VLLMEngine.open(str(TINY), SETTINGS, dtype="float32", device=CPU)


@pytest.fixture
def prompts(policy: Policy) -> list[Prompt]:
    encoded = policy.tokenizer(list(TEXTS))["input_ids"]
    return [Prompt(f"p{number}", tuple(ids)) for number, ids in enumerate(encoded)]


def ours(policy: Policy) -> TransformersEngine:
    return TransformersEngine(policy.model, policy.tokenizer)


def logprobs_of(policy: Policy, prompt: Prompt, label: tuple[int, ...], one: Completion) -> Any:
    """A completion's log-probabilities at temperature 0.8, read in a pass of the model alone."""
    ids = [*prompt.token_ids, *label, *one.token_ids]
    with torch.inference_mode():
        logits = policy.model(torch.tensor([ids])).logits[0, -1 - len(one.token_ids) : -1]
    of_all = (logits / 0.8).log_softmax(-1)
    return of_all.gather(1, torch.tensor([*one.token_ids])[:, None])[:, 0].tolist()


def test_greedy_tokens_are_those_of_the_engine_on_transformers(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    params = SamplingParams(1, 0.0, 32)
    found, expected = (e.sample(prompts, params, seed=0) for e in (engine, ours(policy)))
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert one.text == other.text
        assert one.logprobs.tolist() == pytest.approx(other.logprobs.tolist(), abs=1e-4)


def test_samples_have_the_policy_s_logprobs_and_their_seed(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    params = SamplingParams(32, 0.8, 24)
    found = engine.sample(prompts, params, seed=1)
    assert [(c.problem_id, c.sample_index) for c in found] == [
        (f"p{i}", k) for i in range(2) for k in range(32)
    ]
    for one in found:
        prompt = prompts[int(one.problem_id[1])]
        own = logprobs_of(policy, prompt, (), one)
        assert one.logprobs.tolist() == pytest.approx(own, abs=1e-4)
        assert (one.token_ids[-1] == 0) == (one.finish_reason == "eos")
    assert len({c.text for c in found}) > 32  # they aren't all alike
    assert engine.sample(prompts, params, seed=1) == found
    assert engine.sample(prompts, params, seed=2) != found
    # A prompt's place among all decides its draws, not that in the call.
    assert engine.sample(prompts[1:], params, seed=1, first=1) == found[32:]


def test_samples_are_distributed_as_those_of_the_engine_on_transformers(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    params = SamplingParams(1024, 1.0, 1)
    shares = []
    for each in (engine, ours(policy)):
        first = [c.token_ids[0] for c in each.sample(prompts[:1], params, seed=5)]
        shares.append(torch.bincount(torch.tensor(first), minlength=268) / 1024)
    assert (shares[0] - shares[1]).abs().sum() / 2 < 0.12  # two samples of 1,024


def test_a_stop_string_is_no_part_of_a_completion(engine: Any, prompts: list[Prompt]) -> None:
    found = engine.sample(prompts, SamplingParams(16, 0.8, 32, stop=("\n",)), seed=3)
    assert all("\n" not in c.text for c in found)
    assert {c.finish_reason for c in found} >= {"stop"}
    for one in found:
        assert len(one.token_ids) == len(one.logprobs) <= 32


def test_labels_stand_before_each_step_and_are_no_part_of_it(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    label = (20, 21)
    params = SamplingParams(1, 0.0, 24, step_label=label, step_delimiter="\n")
    found, expected = (e.sample(prompts, params, seed=3) for e in (engine, ours(policy)))
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert any("\n" in c.text.strip() for c in found)  # so there was a second label


def test_what_the_policy_suppresses_is_never_sampled(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    other = load_policy(str(TINY), "float32", CPU).model
    other.generation_config.suppress_tokens = [*range(10, 268)]
    engine.refresh(other)
    found = engine.sample(prompts, SamplingParams(16, 1.0, 16), seed=3)
    assert max(i for c in found for i in c.token_ids) < 10
    engine.refresh(policy.model)


def test_new_weights_come_at_each_hand_over(engine: Any, policy: Policy) -> None:
    changed = load_policy(str(TINY), "float32", CPU).model
    for _ in range(3):
        with torch.no_grad():
            for weight in changed.parameters():
                weight += 1e-3 * torch.randn_like(weight)
        engine.refresh(changed)
        assert engine.gap < 1e-4
    engine.refresh(policy.model)


def test_weights_that_did_not_come_are_refused(
    engine: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = load_policy(str(TINY), "float32", CPU).model
    with torch.no_grad():
        for weight in changed.parameters():
            weight += 1e-4 * torch.randn_like(weight)
    monkeypatch.setattr("reasonrl.sampling.vllm.hand_over", lambda *_: None)
    with pytest.raises(UserError, match=r"sampler\.logprob_gap=0\.001 must be"):
        engine.refresh(changed)
    monkeypatch.undo()
    engine.refresh(policy.model)


def test_an_engine_without_its_weights_samples_nothing(
    engine: Any, policy: Policy, prompts: list[Prompt]
) -> None:
    engine.release()
    with pytest.raises(RuntimeError, match="another engine"):
        engine.sample(prompts, SamplingParams(1, 0.0, 4), seed=0)
    engine.refresh(policy.model)


def test_a_prompt_without_room_is_refused(engine: Any) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens=10 must be at most 2 .*max_model_len=512"):
        engine.sample([Prompt("p", (20,) * 510)], SamplingParams(1, 0.0, 10), seed=0)


def test_bfloat16_differs_by_its_rounding(capsys: pytest.CaptureFixture[str]) -> None:
    from reasonrl.sampling.vllm import VLLMEngine

    engine = VLLMEngine.open(str(TINY), SETTINGS, dtype="bfloat16", device=CPU)
    with capsys.disabled():
        print(f"\nbfloat16: {engine.gap:.3g} nats a token between vLLM and transformers")
    assert 0 < engine.gap < 0.1


RUN = [*SMALL, "sampler=vllm", "init=pretrained", "dataset.train_size=16"]


def test_expert_iteration_by_command(tmp_path: Path) -> None:
    ei = ["algorithm=ei", "algorithm.rounds=2", "algorithm.num_samples_per_prompt=[4]"]
    run_to_the_end(tmp_path / "outputs", [*RUN, *ei])
    (run,) = (tmp_path / "outputs" / "runs").glob("ei-*")
    assert (run / "result.json").exists()


def test_ppo_killed_and_started_again(tmp_path: Path) -> None:
    ppo = ["algorithm=ppo", "algorithm.iterations=3", "algorithm.rollouts_per_iteration=32"]
    command = [*RUN, *ppo, "algorithm.batch_size=16", "runtime.checkpoint_seconds=0"]
    outputs = tmp_path / "outputs"

    def iterations() -> list[dict[str, Any]]:
        return [
            line
            for file in (outputs / "runs").glob("ppo-*/metrics.jsonl")
            for line in read_metrics(file)
            if "pg/sampler_logprob_gap" in line
        ]

    process: subprocess.Popen[bytes] = start(outputs, command, tmp_path / "first.log")
    while len(iterations()) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_to_the_end(outputs, command)
    found = iterations()
    assert [line["pg/iteration"] for line in found] == [1, 2, 3]
    assert max(line["pg/sampler_logprob_gap"] for line in found) < 1e-4
