"""PPO: what it learns from, the loss it goes down, how it steps, which policy it keeps, how it
resumes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.algorithms import ppo as ppo_module
from reasonrl.algorithms.ppo import PPO
from reasonrl.config.algorithm.ppo import CompatConfig, PPOConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.job import Job
from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.learning.packed import PADDED, PromptGroup
from reasonrl.policy.policy import Policy, load_policy, save_policy
from reasonrl.policy_gradient import trainer as trainer_module
from reasonrl.policy_gradient.experience import Experience, token_data
from reasonrl.policy_gradient.losses import Minibatch
from reasonrl.policy_gradient.trainer import Trainer
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog, read_metrics, reproducible
from reasonrl.sampling import ENGINES, Engine, SamplingParams, TransformersEngine
from reasonrl.types import Completion, FinishReason, Problem, Prompt, Rollout, SavedPolicy
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from reasonrl.util.seeding import next_in_stream
from tests.helpers.grading import STRICT
from tests.helpers.scripted import EXEMPLARS, TRAIN, VALIDATION, ScriptedSampler, opening

CPU = torch.device("cpu")


# Two questions with two completions each in an iteration, of four optimizer steps on a question
# each. Without KL, and with λ = 1, returns are sums of rewards.
SMALL = [
    "algorithm=ppo",
    "init=pretrained",
    "dataset.max_new_tokens=6",
    "algorithm.iterations=2",
    "algorithm.rollouts_per_iteration=4",
    "algorithm.num_samples_per_prompt=2",
    "algorithm.temperature=0.7",
    "algorithm.batch_size=2",
    "algorithm.epochs=2",
    "algorithm.learning_rate=1e-2",
    "algorithm.final_learning_rate=1e-3",
    "algorithm.kl_coef=0",
    "algorithm.gamma=1",
    "algorithm.gae_lambda=1",
    "algorithm.clip_range=0.2",
    "algorithm.entropy_coef=0",
    "algorithm.value_layers=1",
    "algorithm.validate_every=1",
]


def even_ids(completions: Sequence[Completion], _: Sequence[Problem]) -> list[tuple[float, ...]]:
    """A reward that a random policy gets something of."""
    return [tuple(0.5 * (i % 2 == 0) for i in c.token_ids) for c in completions]


@dataclass
class Lab:
    """Makes PPOs that start from random weights, on three problems, paid for even token ids.

    sampler: None for the policy's own.
    """

    folder: Path
    configure: Callable[..., TrainConfig]
    tokenizer: PreTrainedTokenizerBase
    base: Path
    opened: ExitStack
    sampler: ScriptedSampler | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    def job(self, *overrides: str, train: Sequence[Problem] = TRAIN) -> Job:
        config = self.configure(*SMALL, *overrides)
        return Job(
            config=config,
            run=self.run,
            device=CPU,
            base=str(self.base),
            init=str(self.base),
            few_shot=config.init.name == "pretrained",
            grader=STRICT,
            tokenizer=self.tokenizer,
            train=list(train),
            validation=VALIDATION,
            exemplars=EXEMPLARS,
            log=self.opened.enter_context(MetricsLog(self.run.metrics)),
            progress=Progress(),
        )

    def ppo(self, *overrides: str, train: Sequence[Problem] = TRAIN) -> PPO:
        job = self.job(*overrides, train=train)
        return PPO(job, job.config.algorithm)

    def metrics(self, name: str) -> list[Any]:
        """Each value that was logged under a name, in order."""
        return [m[name] for m in read_metrics(self.run.metrics) if name in m]


@pytest.fixture
def make_lab(
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
    tmp_path: Path,
) -> Iterator[Callable[[str], Lab]]:
    # Far from uniform, so that temperatures differ; with dropout, which nothing must notice.
    model = make_model(initializer_range=0.3, attention_dropout=0.5)
    # By chance one token in five ends a completion.
    model.generation_config.eos_token_id = list(range(0, 268, 5))
    save_policy(Policy(model, tokenizer), tmp_path / "base")
    monkeypatch.setattr(Job, "reward", lambda _: even_ids)
    with ExitStack() as opened:

        def make(name: str) -> Lab:
            lab = Lab(tmp_path / name, cache(configure), tokenizer, tmp_path / "base", opened)
            monkeypatch.setitem(
                ENGINES,
                "transformers",
                opening(lambda *of, **how: lab.sampler or TransformersEngine.open(*of, **how)),
            )
            return lab

        yield make


@pytest.fixture
def lab(make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab("run")


def hash_of(path: str | Path) -> str:
    return weights_hash(load_policy(str(path), "float32", CPU).model)


def rollout(
    name: str,
    ids: tuple[int, ...],
    rewards: tuple[float, ...],
    ending: FinishReason = "eos",
    logprob: float = -0.5,
) -> Rollout:
    completion = Completion(name, 0, ids, (logprob,) * len(ids), ending, "")
    prompt = Prompt(name, (5, 6, 7 + int(name[1])))
    return Rollout(prompt, completion, None, False, rewards)


# Ended, cut off, ended, stopped: 10 tokens.
ROLLOUTS = [
    rollout("t0", (20, 21, 0), (0.5, 0.0, 1.0)),
    rollout("t0", (30, 31, 32, 33), (0.0, 0.0, 0.0, -0.25), "length"),
    rollout("t1", (40, 0), (0.0, 0.0)),
    rollout("t1", (50,), (2.0,), "stop"),
]
LENGTHS = [3, 4, 2, 1]


def distributions(model: Any, one: Rollout, temperature: float) -> Tensor:
    """(T, V): log-probabilities before each token of the completion, of a pass over it alone."""
    ids = torch.tensor([[*one.prompt.token_ids, *one.completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    return (logits[len(one.prompt.token_ids) - 1 : -1] / temperature).log_softmax(dim=-1)


def logprobs(model: Any, one: Rollout, temperature: float = 0.7) -> list[float]:
    found = distributions(model, one, temperature)
    return [found[t, i].item() for t, i in enumerate(one.completion.token_ids)]


def of_tokens(experience: Sequence[Experience], name: str) -> list[list[float]]:
    """A field of TokenData, for each of ROLLOUTS."""
    return [x.tolist() for x in token_data(experience)[name].split(LENGTHS)]


def rows(expected: Sequence[Sequence[float]]) -> list[Any]:
    return [pytest.approx(row, abs=1e-5) for row in expected]


def reference(ppo: PPO) -> Any:
    """The model of the reference policy, which is one of its own but for LoRA."""
    return ppo.trainer.reference.policy  # type: ignore[attr-defined]


def advantages_of(ppo: PPO, rollouts: Sequence[Rollout]) -> list[Experience]:
    return ppo.compute_advantages(ppo.exploration.explored(rollouts))


def move(ppo: PPO, distance: float = 0.05) -> None:
    """The policy's weights, by what differs from one to the next; values stay 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in ppo.trainer.model.policy_parameters():
            p.add_(distance * torch.randn(p.shape, generator=generator))


# --- rewards and returns


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [[1.5, 1.0, 1.0], [-0.25] * 4, [0.0, 0.0], [2.0]]),
        # the rewards themselves: each on its token, that of a score on the last one
        (["gae_lambda=0"], [[0.5, 0.0, 1.0], [0.0, 0.0, 0.0, -0.25], [0.0, 0.0], [2.0]]),
        # 0.5 + 0.5² 1, 0.5 1, 1; 0.5³, 0.5², 0.5, 1 times -0.25
        (["gamma=0.5"], [[0.75, 0.5, 1.0], [-0.03125, -0.0625, -0.125, -0.25], [0.0] * 2, [2.0]]),
        (["truncation_penalty=0.5"], [[1.5, 1.0, 1.0], [-0.75] * 4, [0.0, 0.0], [2.0]]),
    ],
)
def test_returns_are_the_rewards_from_the_token_on(
    options: list[str], expected: list[list[float]], lab: Lab
) -> None:
    ppo = lab.ppo(*[f"algorithm.{option}" for option in options])
    experience = advantages_of(ppo, ROLLOUTS)
    assert of_tokens(experience, "returns") == rows(expected)
    assert of_tokens(experience, "old_values") == rows([[0.0] * n for n in LENGTHS])


def test_the_score_is_every_sampled_token_s_return(lab: Lab, scripted: Callable) -> None:
    """From the sampler's completion to the learner, however it ended."""
    lab.sampler = scripted(lambda *_: [" 5", " 1 2 3 4 5 6 7", " 1 2\n\nQ", ""])
    ppo = lab.ppo("algorithm.num_samples_per_prompt=4", "algorithm.batch_size=4", train=TRAIN[:1])
    scores = {"eos": 1.5, "length": -2.0, "stop": 0.25}
    ppo.exploration.reward = lambda completions, _: [
        (0.0,) * (len(c.token_ids) - 1) + (scores[c.finish_reason],) for c in completions
    ]
    ppo.trainer.state.iteration = 1
    explored = ppo.explore(1)
    (experience,) = ppo.compute_advantages(explored)
    rollouts = explored.rollouts
    assert [r.completion.finish_reason for r in rollouts] == ["eos", "length", "stop", "eos"]
    lengths = [len(r.completion.token_ids) for r in rollouts]
    assert lengths[1] == 6  # dataset.max_new_tokens
    assert lengths[3] == 1  # nothing but EOS
    assert experience.tokens.returns.tolist() == (
        [1.5] * lengths[0] + [-2.0] * 6 + [0.25] * lengths[2] + [1.5]
    )


# --- KL to the reference


def test_kl_is_taken_off_the_rewards(lab: Lab) -> None:
    ppo = lab.ppo("algorithm.kl_coef=0.5")
    move(ppo)
    policy, ref = ppo.trainer.model.policy, reference(ppo)
    expected, kls = [], []
    for one in ROLLOUTS:
        gaps = [a - b for a, b in zip(logprobs(policy, one), logprobs(ref, one), strict=True)]
        kls.append(sum(gaps))
        expected.append(
            [sum(one.rewards[t:]) - 0.5 * sum(gaps[t:]) for t in range(len(one.rewards))]
        )
    assert min(map(abs, kls)) > 0.1
    experience = advantages_of(ppo, ROLLOUTS)
    assert of_tokens(experience, "returns") == rows(expected)
    assert lab.metrics("pg/kl") == [pytest.approx(sum(kls) / 4, abs=1e-5)]  # per completion
    # and is nowhere else
    ppo.trainer.state.kl_coef = 7.0
    with_more, _ = ppo.loss(experience, Minibatch.of(experience, 6))
    ppo.trainer.state.kl_coef = 0.0
    assert with_more.item() == ppo.loss(experience, Minibatch.of(experience, 6))[0].item()


def test_or_added_to_the_loss(lab: Lab) -> None:
    ppo = lab.ppo("algorithm.kl_coef=7", "algorithm.kl_penalty=loss")
    move(ppo)
    experience = advantages_of(ppo, ROLLOUTS)
    assert of_tokens(experience, "returns") == rows(
        [[1.5, 1.0, 1.0], [-0.25] * 4, [0.0, 0.0], [2.0]]
    )
    k3 = 0.0
    for one in ROLLOUTS:
        policy, ref = (logprobs(m, one) for m in (ppo.trainer.model.policy, reference(ppo)))
        k3 += sum(math.exp(b - a) - 1 - (b - a) for a, b in zip(policy, ref, strict=True))
    assert k3 > 0.1
    with_kl, _ = ppo.loss(experience, Minibatch.of(experience, 6))
    ppo.trainer.state.kl_coef = 0.0
    without, _ = ppo.loss(experience, Minibatch.of(experience, 6))
    assert (with_kl - without).item() == pytest.approx(7 * k3, abs=1e-4)


@pytest.mark.parametrize("trainable", ["all", "top", "lora"])
def test_the_reference_never_moves(trainable: str, lab: Lab) -> None:

    def reads(ppo: PPO) -> Tensor:
        groups = [PromptGroup(r.prompt.token_ids, (r.completion.token_ids,)) for r in ROLLOUTS]
        with torch.no_grad():
            return ppo.trainer.reference(groups, torch.float32, 0.7)

    options = (f"algorithm.trainable={trainable}", "algorithm.trainable_layers=1")
    ppo = lab.ppo(*options, "algorithm.lora_rank=2", "runtime.checkpoint_seconds=0")
    before, hashed = reads(ppo), weights_hash(ppo.trainer.model.policy)
    ppo.train()
    assert torch.equal(reads(ppo), before)
    moved = weights_hash(ppo.trainer.model.policy)
    assert moved != hashed
    resumed = lab.ppo(*options, "algorithm.lora_rank=2")
    resumed.resume()
    assert torch.equal(reads(resumed), before)
    assert weights_hash(resumed.trainer.model.policy) == moved


def test_another_starting_policy_is_refused(
    lab: Lab, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    lab.ppo("runtime.checkpoint_seconds=0").train()
    save_policy(Policy(make_model(seed=1), lab.tokenizer), lab.base)
    expected = f"init={lab.base} must hold the policy that the run began with.*Restore them, or del"
    with pytest.raises(UserError, match=expected):
        lab.ppo().train()


@pytest.mark.parametrize(
    ("logprob", "expected"),
    # 0.1 (1 ± 0.2 · 4 / 10): what a sampler is sure of costs log 1 - log π_ref > 1 nat
    [(0.0, 0.108), (-20.0, 0.092)],
)
def test_kl_coef_follows_its_target(logprob: float, expected: float, lab: Lab) -> None:
    ppo = lab.ppo(
        "algorithm.kl_coef=0.1",
        "algorithm.kl_target=1",
        "algorithm.kl_horizon=10",
        "algorithm.old_logprobs=sampler",
    )
    sampled = [
        replace(r, completion=replace(r.completion, logprobs=(logprob,) * len(r.rewards)))
        for r in ROLLOUTS
    ]
    experience = advantages_of(ppo, sampled)
    assert lab.metrics("pg/kl_coef") == [pytest.approx(expected)]
    assert ppo.trainer.state.kl_coef == pytest.approx(expected)
    # It is that coefficient by which the same rollouts' rewards are shaped.
    kl = logprob - logprobs(reference(ppo), ROLLOUTS[3])[0]
    assert of_tokens(experience, "returns")[3] == [pytest.approx(2.0 - expected * kl, abs=1e-5)]


# --- log-probabilities


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_first_ratio_of_an_iteration_is_1(trainable: str, lab: Lab) -> None:
    """At the sampling temperature, with dropout in the model's configuration."""
    ppo = lab.ppo("algorithm.epochs=1", f"algorithm.trainable={trainable}")
    assert ppo.trainer.model.policy.config.attention_dropout == 0.5
    ppo.train()
    lowest, highest = lab.metrics("pg/ratio_min"), lab.metrics("pg/ratio_max")
    clipped, approx_kl = lab.metrics("pg/clip_fraction"), lab.metrics("pg/approx_kl")
    for first in (0, 2):  # of two steps
        assert lowest[first] == pytest.approx(1.0, abs=1e-5)
        assert highest[first] == pytest.approx(1.0, abs=1e-5)
        assert clipped[first] == 0.0
        assert approx_kl[first] < 1e-9
        assert approx_kl[first + 1] > 1e-6  # π has moved by then


def test_the_ids_learnt_from_are_the_ids_sampled(
    lab: Lab, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = ScriptedSampler._completion
    odd = (13, 13, 2, 268 - 1, 0)  # no text encodes to these

    def with_odd_ids(self: ScriptedSampler, *args: Any) -> Completion:
        return replace(complete(self, *args), token_ids=odd, logprobs=(-0.5,) * 5)

    monkeypatch.setattr(ScriptedSampler, "_completion", with_odd_ids)
    lab.sampler = scripted(lambda *_: [" 5"])
    ppo, read = lab.ppo(), []
    ppo.trainer.model.register_forward_pre_hook(lambda _, given: read.extend(given[0]))
    ppo.train()
    # Two questions an iteration, seen when assessed and in each epoch.
    assert [group.completion_ids for group in read] == [(odd, odd)] * (2 * 2 * 3)
    asked = [prompt.token_ids for prompts, *_ in lab.sampler.calls for prompt in prompts]
    assert {group.prompt_ids for group in read} <= set(asked)


def test_old_logprobs_are_the_sampler_s_or_recomputed(lab: Lab) -> None:
    ppo = lab.ppo()
    recomputed = [logprobs(ppo.trainer.model.policy, one) for one in ROLLOUTS]
    assert of_tokens(advantages_of(ppo, ROLLOUTS), "old_logprobs") == rows(recomputed)
    ppo.config = replace(ppo.config, old_logprobs="sampler")
    assert of_tokens(advantages_of(ppo, ROLLOUTS), "old_logprobs") == [[-0.5] * n for n in LENGTHS]
    # how far they are apart is logged in both cases, per token
    gap = sum(abs(-0.5 - x) for of_completion in recomputed for x in of_completion) / 10
    assert lab.metrics("pg/sampler_logprob_gap") == [pytest.approx(gap, abs=1e-5)] * 2


def test_off_policy_correction_weighs_the_advantages(lab: Lab) -> None:
    ppo = lab.ppo("algorithm.off_policy_cap=1.5")
    plain = of_tokens(advantages_of(ppo, ROLLOUTS), "advantages")
    own = [logprobs(ppo.trainer.model.policy, one) for one in ROLLOUTS]
    ppo.config = replace(ppo.config, off_policy_correction="tis")
    corrected = of_tokens(advantages_of(ppo, ROLLOUTS), "advantages")
    weights = [[min(math.exp(x + 0.5), 1.5) for x in of_one] for of_one in own]
    assert corrected == [
        [pytest.approx(w * a, abs=1e-4) for w, a in zip(*both, strict=True)]
        for both in zip(weights, plain, strict=True)
    ]
    flat = [w for of_one in weights for w in of_one]
    assert lab.metrics("pg/off_policy_weight") == [pytest.approx(sum(flat) / len(flat), abs=1e-5)]


def test_temperature_one_logprobs(lab: Lab) -> None:
    options = ("algorithm.kl_coef=0", "algorithm.entropy_coef=1")
    ppo = lab.ppo("algorithm.compat.temperature_one_logprobs=true", *options)
    move(ppo)
    experience = advantages_of(ppo, ROLLOUTS)
    for name, model in (("old", ppo.trainer.model.policy), ("ref", reference(ppo))):
        at_one = [logprobs(model, one, temperature=1.0) for one in ROLLOUTS]
        assert of_tokens(experience, f"{name}_logprobs") == rows(at_one)
        assert at_one[0] != rows([logprobs(model, ROLLOUTS[0])])[0]
    _, of_step = ppo.loss(experience, Minibatch.of(experience, 6))
    assert of_step["ratio"].tolist() == pytest.approx([1.0] * 10, abs=1e-5)


def test_unmasked_whitening(lab: Lab) -> None:
    # Scores 1 and 0 of one token and three: advantages 1; 0, 0, 0.
    rollouts = [
        rollout("t0", (20,), (1.0,)),
        rollout("t0", (30, 31, 0), (0.0, 0.0, 0.0)),
    ]
    ppo = lab.ppo()
    # mean 1/4, variance 3/16: 3/4 and -1/4 over √3/4
    advantages = token_data(advantages_of(ppo, rollouts))["advantages"]
    assert advantages.tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3], abs=1e-5)
    # With two positions of padding: mean 1/6, variance 5/36: 5/6 and -1/6 over √5/6
    compat = CompatConfig(unmasked_whitening=True, temperature_one_logprobs=False)
    ppo.config = replace(ppo.config, compat=compat)
    advantages = token_data(advantages_of(ppo, rollouts))["advantages"]
    assert advantages.tolist() == pytest.approx([5**0.5, *[-(5**-0.5)] * 3], abs=1e-5)


def test_what_other_frameworks_did_is_off_unless_asked_for(lab: Lab) -> None:
    config = lab.configure("algorithm=ppo").algorithm
    assert isinstance(config, PPOConfig)
    assert config.compat == CompatConfig(unmasked_whitening=False, temperature_one_logprobs=False)
    assert config.old_logprobs == "recomputed"


# --- the loss


def test_the_loss_by_hand(lab: Lab) -> None:
    """−ρA where nothing is clipped, ½ V² of returns, and an entropy bonus."""
    ppo = lab.ppo("algorithm.clip_range=0.99", "algorithm.value_coef=3")
    experience = advantages_of(ppo, ROLLOUTS)
    advantages, old = (of_tokens(experience, name) for name in ("advantages", "old_logprobs"))
    move(ppo, 0.003)
    ratios, policy_loss, nats = [], 0.0, 0.0
    for one, before, better in zip(ROLLOUTS, old, advantages, strict=True):
        now = logprobs(ppo.trainer.model.policy, one)
        rho = [math.exp(a - b) for a, b in zip(now, before, strict=True)]
        policy_loss -= sum(r * a for r, a in zip(rho, better, strict=True))
        ratios += rho
        of_all = distributions(ppo.trainer.model.policy, one, 0.7)
        nats -= (of_all.exp() * of_all).sum().item()
    assert 0.01 < min(ratios) < 0.95
    assert 1.05 < max(ratios) < 1.99
    # returns 1.5, 1, 1; -0.25 four times; 0, 0; 2: squares 2.25 + 2 + 0.25 + 0 + 4
    value_loss = 0.5 * 8.5

    loss, of_step = ppo.loss(experience, Minibatch.of(experience, 6))
    assert loss.item() == pytest.approx(policy_loss + 3 * value_loss, abs=1e-4)
    assert of_step["ratio"].tolist() == pytest.approx(ratios, abs=1e-5)
    kl = [rho - 1 - math.log(rho) for rho in ratios]
    assert of_step["approx_kl"].tolist() == pytest.approx(kl, abs=1e-5)
    assert not of_step["clip_fraction"].any()
    ppo.config = replace(ppo.config, value_coef=5.0)
    assert (ppo.loss(experience, Minibatch.of(experience, 6))[0] - loss).item() == pytest.approx(
        2 * value_loss, abs=1e-4
    )
    ppo.config = replace(ppo.config, value_coef=3.0, entropy_coef=0.25)
    assert (ppo.loss(experience, Minibatch.of(experience, 6))[0] - loss).item() == pytest.approx(
        -0.25 * nats, abs=1e-4
    )


def test_more_entropy_is_less_loss(lab: Lab) -> None:
    """Down the gradient of the bonus entropy rises."""
    ppo = lab.ppo("algorithm.value_coef=0")
    still = [replace(r, rewards=(0.0,) * len(r.rewards)) for r in ROLLOUTS]  # nothing else to gain
    experience = advantages_of(ppo, still)
    ppo.config = replace(ppo.config, entropy_coef=1.0)
    ppo.step(experience)
    advantages_of(ppo, still)
    before, after = lab.metrics("pg/entropy")
    assert after > before + 0.01


@pytest.mark.parametrize("detach", [True, False])
def test_the_value_s_gradient_stops_where_it_is_told_to(detach: bool, lab: Lab) -> None:
    ppo = lab.ppo(f"algorithm.detach_value={detach}")
    model = ppo.trainer.model
    torch.nn.init.ones_(model.value_head.weight)  # at 0 no gradient would pass
    experience = advantages_of(ppo, ROLLOUTS)
    found = []
    for value_coef in (0.0, 1.0):
        ppo.config = replace(ppo.config, value_coef=value_coef)
        model.zero_grad()
        ppo.loss(experience, Minibatch.of(experience, 6))[0].backward()
        gradients = [p.grad for p in model.policy_parameters()]
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-5) == detach


def iterate(ppo: PPO) -> None:
    ppo.trainer.state.iteration += 1
    ppo.trainer.state.taken = 0
    ppo.update(advantages_of(ppo, ROLLOUTS))


def test_micro_batches_and_padding_change_nothing(make_lab: Callable[[str], Lab]) -> None:
    weights, logged = [], []
    for name, size in (("whole", 10_000), ("cut", 1), ("apart", 1)):
        lab = make_lab(name)
        batches = ("algorithm.batch_size=4", f"algorithm.micro_batch_tokens={size}")
        ppo = lab.ppo(*batches, "algorithm.kl_coef=0.1", "algorithm.entropy_coef=0.1")
        passes: list[int] = []
        ppo.trainer.model.register_forward_pre_hook(
            lambda _, given, passes=passes: passes.append(len(given[0]))
        )
        if name == "apart":  # two completions of each question
            ppo.trainer.model.layout = ppo.trainer.reference.layout = PADDED
        iterate(ppo)
        assert passes == {"whole": [2] * 3, "cut": [1] * 6, "apart": [1] * 12}[name]
        weights.append(torch.cat([p.flatten() for p in ppo.trainer.model.parameters()]))
        logged.append(read_metrics(lab.run.metrics))
    for others, theirs in zip(weights[1:], logged[1:], strict=True):
        assert torch.allclose(weights[0], others, rtol=0, atol=1e-5)
        for whole, cut in zip(logged[0], theirs, strict=True):
            assert cut == pytest.approx(whole, rel=1e-5, abs=1e-5)
    assert len(logged[0]) == 3  # the iteration's, and of two steps


def test_a_policy_that_moved_too_far_ends_the_iteration(
    make_lab: Callable[[str], Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 10 steps, 2 of them warm-up, at 1e-2 by then and 1e-3 at the end: after 5 halfway between.
    # The value function's are ten times that.
    options = (
        "algorithm.batch_size=4",
        "algorithm.epochs=5",
        "algorithm.warmup_fraction=0.2",
        "algorithm.value_learning_rate=1e-1",
    )
    used: dict[str, list[tuple[float, float]]] = {}
    real = Trainer.step

    def step(self: Trainer) -> dict[str, float]:
        policy, value = self.optimization._optimizer.param_groups
        used[limit].append((policy["lr"], value["lr"]))
        return real(self)

    monkeypatch.setattr(Trainer, "step", step)
    for limit, steps in (("null", [5, 5]), ("1e-8", [2, 2])):
        # The first step finds the policy where it was, the second one past the limit.
        lab, used[limit] = make_lab(limit), []
        lab.ppo(*options, f"algorithm.max_approx_kl={limit}").train()
        assert lab.metrics("pg/steps") == steps
        rates = lab.metrics("pg/learning_rate")
        assert rates == [policy for policy, _ in used[limit]]
        assert [value for _, value in used[limit]] == pytest.approx([10 * rate for rate in rates])
        assert rates[:2] == pytest.approx([5e-3, 1e-2])
        assert rates[steps[0]] == pytest.approx(5.5e-3)  # of the second iteration's first step
    assert rates[3] == pytest.approx(used["null"][6][0])


# --- which questions, and which completions


def test_every_problem_comes_once_before_any_comes_twice() -> None:
    items = list("abcdefg")
    stream = next_in_stream(items, 0, 70, seed=3)
    passes = [stream[start : start + 7] for start in range(0, 70, 7)]
    assert all(sorted(one) == items for one in passes)
    assert len({tuple(one) for one in passes}) == 10  # each in an order of its own
    assert next_in_stream(items, 0, 7, seed=4) != passes[0]
    # Cut in any way it is the same stream.
    assert [next_in_stream(items, start, 5, seed=3) for start in range(0, 70, 5)] == [
        stream[start : start + 5] for start in range(0, 70, 5)
    ]
    assert next_in_stream(items, 30, 0, seed=3) == []


def test_iterations_go_through_the_stream(lab: Lab, scripted: Callable) -> None:
    lab.sampler = scripted(lambda *_: [" 5"])
    lab.ppo("algorithm.iterations=3").train()
    asked = [
        [prompt.problem_id for prompt in prompts]
        for prompts, params, _ in lab.sampler.calls
        if params.temperature == 0.7
    ]
    assert [len(prompts) for prompts in asked] == [2, 2, 2]
    names = [name for prompts in asked for name in prompts]
    assert sorted(names[:3]) == sorted(names[3:]) == ["t0", "t1", "t2"]
    # one of all validations, and one of each iteration
    assert len({seed for *_, seed in lab.sampler.calls}) == 4


def test_empty_completions_are_left_out(lab: Lab) -> None:
    rollouts = [*ROLLOUTS[:2], rollout("t1", (), (), "stop"), ROLLOUTS[3]]
    first, second = advantages_of(lab.ppo(), rollouts)
    assert first.group.completion_ids == ((20, 21, 0), (30, 31, 32, 33))
    assert second.group.completion_ids == ((50,),)
    assert second.tokens.returns.tolist() == [2.0]


def test_mask_truncated_learns_nothing_from_what_was_cut_off(lab: Lab) -> None:
    ppo = lab.ppo("algorithm.mask_truncated=true")
    first, second = advantages_of(ppo, ROLLOUTS)
    assert first.group.completion_ids == ((20, 21, 0),)
    assert second.group.completion_ids == ((40, 0), (50,))
    # It counts among the rollouts still.
    assert lab.metrics("rollout/finish_length") == [0.25]


def test_kl_is_a_mean_over_the_completions_that_are_learnt_from(lab: Lab) -> None:
    """Those that ``mask_truncated`` leaves out count nowhere: β follows this number."""
    ppo = lab.ppo("algorithm.mask_truncated=true")
    move(ppo)
    policy, ref = ppo.trainer.model.policy, reference(ppo)
    ended = [one for one in ROLLOUTS if one.completion.finish_reason != "length"]
    total = sum(sum(logprobs(policy, one)) - sum(logprobs(ref, one)) for one in ended)
    advantages_of(ppo, ROLLOUTS)
    assert abs(total) > 0.1
    assert lab.metrics("pg/kl") == [pytest.approx(total / 3, abs=1e-5)]  # of 4


def test_an_iteration_with_nothing_to_learn_from_is_passed_over(
    lab: Lab, scripted: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    cut_off, ended = [" 1 2 3 4 5 6 7"], [" 5", " 8"]
    lab.sampler = scripted(lambda name, visit: ended if (name[0], visit) == ("t", 1) else cut_off)
    with caplog.at_level(logging.WARNING):
        options = ("algorithm.mask_truncated=true", "algorithm.warmup_fraction=0.25")
        lab.ppo(*options, train=TRAIN[:2]).train()
    assert "iteration 1 has no completion to learn from" in caplog.text
    assert "iteration 2 has no" not in caplog.text
    assert lab.metrics("pg/steps") == [0, 4]
    assert lab.metrics("pg/iteration") == [1, 2]  # what was sampled in vain is logged, too
    assert len(lab.metrics("pg/kl")) == 1
    records = [m for m in read_metrics(lab.run.metrics) if "pg/learning_rate" in m]
    assert [m["step"] for m in records] == [1, 2, 3, 4]
    # Of 8 planned steps these are the last four. At the 2nd one the rate is 1e-2, at the 8th 1e-3,
    # so at the 5th it is halfway between.
    assert records[0]["pg/learning_rate"] == pytest.approx(5.5e-3)
    assert records[-1]["pg/learning_rate"] == pytest.approx(1e-3)
    assert lab.run.policy.exists()


# --- optimizer steps


@pytest.mark.parametrize("broken", ["policy", "value"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_refused(broken: str, number: float, lab: Lab) -> None:
    ppo = lab.ppo()
    experience, model = advantages_of(ppo, ROLLOUTS), ppo.trainer.model
    before = weights_hash(model)
    ppo.loss(experience, Minibatch.of(experience, 6))[0].backward()
    parameters = model.policy_parameters() if broken == "policy" else model.value_parameters()
    assert parameters[-1].grad is not None
    parameters[-1].grad[0] = number
    rate = {"policy": "learning_rate=0.01", "value": "value_learning_rate=0.001"}[broken]
    expected = rf"^algorithm.{rate} must keep gradients finite; got a norm of {number} in step 1 of"
    with pytest.raises(UserError, match=expected):
        ppo.trainer.step()
    assert weights_hash(model) == before
    assert ppo.trainer.steps == 0


def test_policy_and_value_gradients_are_clipped_apart(lab: Lab) -> None:
    trainer = lab.ppo("algorithm.max_grad_norm=1").trainer
    policy, value = trainer.model.policy_parameters(), trainer.model.value_parameters()
    for p in (*policy, *value):
        p.grad = torch.zeros_like(p)
    for parameters, (one, other) in ((policy, (30.0, 40.0)), (value, (0.3, 0.4))):
        parameters[0].grad.view(-1)[0] = one  # type: ignore[union-attr]
        parameters[-1].grad.view(-1)[0] = other  # type: ignore[union-attr]
    norms: list[float] = []

    def measure(*_: Any) -> None:
        for parameters in (policy, value):
            norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())  # type: ignore[union-attr]

    trainer.optimization._optimizer.register_step_pre_hook(measure)
    logged = trainer.step()
    # 30² + 40² = 50², clipped to 1; 0.3² + 0.4² = 0.5², as it is
    assert norms == pytest.approx([1.0, 0.5], abs=1e-4)
    found = [logged[f"pg/{name}_grad_norm"] for name in ("policy", "value")]
    assert found == pytest.approx([50.0, 0.5], abs=1e-4)
    assert all(p.grad is None for p in (*policy, *value))


# --- the policy that is kept


def scripted_accuracy(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> None:
    """Of iteration 0, 1, …"""
    real = Job.accuracy

    def accuracy(self: Job, *args: Any, file: Path, **options: Any) -> float:
        real(self, *args, file=file, **options)
        return accuracies[int(file.stem.removeprefix("iteration-"))]

    monkeypatch.setattr(Job, "accuracy", accuracy)


def test_the_best_policy_by_validation_is_the_run_s(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The start doesn't count; of equals the earlier one does.
    scripted_accuracy(monkeypatch, 0.9, 0.1, 0.5, 0.5, 0.3)
    job = lab.job("algorithm.iterations=4")
    hashes: list[str] = []
    validate = Trainer.validate

    def keep_hash(self: Trainer) -> None:
        hashes.append(weights_hash(self.model.policy))
        validate(self)

    monkeypatch.setattr(Trainer, "validate", keep_hash)
    result = ppo_module.run(job, job.config.algorithm)
    assert len({*hashes}) == 5
    assert hash_of(result.path) == hashes[2]
    assert result == SavedPolicy(str(lab.run.policy), few_shot=True)
    assert not list(job.work.glob("policy-*"))
    assert lab.metrics("eval/validation_maj@1") == [0.9, 0.1, 0.5, 0.5, 0.3]
    assert ppo_module.run(job, job.config.algorithm) == result  # and nothing is computed
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("patience", "every", "validated"),
    [(2, 1, [0.9, 0.1, 0.5, 0.5, 0.3]), (1, 1, [0.9, 0.1, 0.5, 0.5]), (1, 2, [0.9, 0.5, 0.3])],
)
def test_patience_ends_it_after_so_many_validations_that_are_not_better(
    patience: int,
    every: int,
    validated: list[float],
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted_accuracy(monkeypatch, 0.9, 0.1, 0.5, 0.5, 0.3, 0.9, 0.9)
    length = ["algorithm.iterations=6", f"algorithm.validate_every={every}"]
    lab.ppo(*length, f"algorithm.patience={patience}").train()
    assert lab.metrics("eval/validation_maj@1") == validated


def test_validation_comes_every_so_often_and_at_the_end(lab: Lab, scripted: Callable) -> None:
    lab.sampler = scripted(lambda *_: [" #### 5"])  # to v0, not to v1
    lab.ppo("algorithm.iterations=5", "algorithm.validate_every=2").train()
    records = [m for m in read_metrics(lab.run.metrics) if "eval/validation_maj@1" in m]
    assert [m["pg/rollouts"] for m in records] == [0, 8, 16, 20]
    assert [m["eval/validation_maj@1"] for m in records] == [0.5] * 4


@pytest.mark.parametrize(("init", "questions"), [("pretrained", 3), ("sft", 1)])
def test_a_pretrained_policy_is_asked_with_exemplars_throughout(
    init: str, questions: int, lab: Lab, scripted: Callable
) -> None:
    lab.sampler = scripted(lambda *_: [" 5"])
    job = lab.job(f"init={init}")
    result = ppo_module.run(job, job.config.algorithm)
    assert result.few_shot == (init == "pretrained")
    asked = [lab.tokenizer.decode([*prompts[0].token_ids]) for prompts, *_ in lab.sampler.calls]
    assert [text.count("Q:") for text in asked] == [questions] * 5


def test_it_is_saved_in_the_dtype_it_computes_in(lab: Lab) -> None:
    job = lab.job("model.compute_dtype=bfloat16")
    result = ppo_module.run(job, job.config.algorithm)
    with safe_open(Path(result.path) / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_adapters_are_saved_merged(lab: Lab) -> None:
    ppo = lab.ppo("algorithm.trainable=lora", "algorithm.lora_rank=2", "algorithm.iterations=1")
    ppo.train()
    loaded = load_policy(str(lab.run.policy), "float32", CPU).model
    base = load_policy(str(lab.base), "float32", CPU).model
    assert loaded.state_dict().keys() == base.state_dict().keys()  # a plain model
    now, was = (
        {name: p for name, p in m.state_dict().items() if "proj" in name} for m in (loaded, base)
    )
    assert all(not torch.equal(now[name], was[name]) for name in now)
    for one in ROLLOUTS:
        assert logprobs(loaded, one) == pytest.approx(
            logprobs(ppo.trainer.model.policy, one), abs=1e-5
        )
        assert logprobs(loaded, one) != pytest.approx(logprobs(base, one), abs=1e-3)


# --- kill and resume


class Killed(BaseException):
    pass


@dataclass
class Reaper:
    """Kills what it watches the first time that a run is there."""

    lab: Lab
    ppo: PPO | None = None
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def dying(*args: Any, **options: Any) -> Any:
            self.pass_by(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, dying)

    def pass_by(self, name: str) -> None:
        if self.ppo is None:
            return
        trainer = self.ppo.trainer
        place = (name, trainer.state.iteration, trainer.steps)
        if place not in self.seen:
            self.seen.append(place)
            raise Killed

    def run(self, *overrides: str) -> None:
        """Again and again, until it is done."""
        while not self.lab.run.policy.exists():
            assert len(self.seen) < 60, "it comes to new places without end"
            self.ppo = self.lab.ppo(*overrides)
            try:
                self.ppo.train()
            except Killed:
                continue
        self.ppo = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "second"),
    [
        ([], 0.5),
        (["trainable=lora", "lora_rank=2", "kl_coef=0.1", "kl_target=1", "kl_horizon=20",
          "scale_scores=true", "value_layers=0", "old_logprobs=sampler"], 0.5),
        (["trainable=top", "trainable_layers=1", "max_approx_kl=1e-3", "mask_truncated=true"], 0.1),
    ],
    ids=["all", "lora", "top"],
)  # fmt: skip
def test_a_run_killed_everywhere_ends_as_if_left_alone(
    options: list[str],
    second: float,
    make_lab: Callable[[str], Lab],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """second: the accuracy of the second iteration's policy; the first one's is 0.3."""
    scripted_accuracy(monkeypatch, 0.9, 0.3, second)
    overrides = ["runtime.checkpoint_seconds=0"]
    overrides += [f"algorithm.{option}" for option in options]
    straight = make_lab("straight")
    straight.ppo(*overrides).train()

    lab = make_lab("killed")
    reaper = Reaper(lab)
    for owner, name in [
        (Trainer, "step"),
        (Checkpoints, "save"),
        (trainer_module, "save_policy"),
        (trainer_module, "remove_folder"),
        (ppo_module, "annotate"),
        (Trainer, "end_iteration"),
        (Trainer, "finish"),
    ]:
        reaper.watch(monkeypatch, owner, name)
    engine = ENGINES["transformers"]

    def open_mortal(*given: Any, **how: Any) -> Engine:
        sampler = engine.open(*given, **how)
        real = sampler.sample

        def dying(prompts: Any, params: SamplingParams, **options: Any) -> list[Completion]:
            reaper.pass_by("explore" if params.temperature else "validate")
            return real(prompts, params, **options)

        monkeypatch.setattr(sampler, "sample", dying)
        return sampler

    monkeypatch.setitem(ENGINES, "transformers", opening(open_mortal))
    reaper.run(*overrides)

    steps = sum(straight.metrics("pg/steps"))
    assert steps >= 4
    killed_at = [(name, taken) for name, _, taken in reaper.seen]
    assert [taken for name, taken in killed_at if name == "step"] == list(range(steps))
    assert sum(name == "validate" for name, _ in killed_at) == 3
    assert sum(name == "explore" for name, _ in killed_at) == 2
    assert sum(name == "remove_folder" for name, _ in killed_at) == (second > 0.3)
    assert hash_of(lab.run.policy) == hash_of(straight.run.policy)
    found, expected = (reproducible(one.run.metrics) for one in (lab, straight))
    assert found == expected
    assert {m["pg/kl"] for m in expected if "pg/kl" in m} != {0.0}


def test_without_a_checkpoint_it_starts_over(
    make_lab: Callable[[str], Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = make_lab("straight")
    straight.ppo().train()
    lab = make_lab("killed")
    reaper = Reaper(lab)
    reaper.watch(monkeypatch, Trainer, "step")
    reaper.seen = [("step", 1 + step // 4, step) for step in range(8) if step != 5]
    reaper.run()
    assert len(reaper.seen) == 8
    assert hash_of(lab.run.policy) == hash_of(straight.run.policy)
    names = ("pg/kl", "pg/policy_loss", "pg/value_loss", "eval/validation_maj@1")
    for name in names:
        assert lab.metrics(name) == straight.metrics(name)


# --- it learns


@dataclass
class Bandit:
    """One question, one token to answer it with, and a reward of 1 for one of 268 tokens.

    paid: its probability before the first iteration and after each. kl: exact, to the reference.
    """

    paid: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)


@pytest.fixture
def bandit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bandit]:
    def play(kl_coef: float, *options: str, iterations: int) -> Bandit:
        ppo = lab.ppo(
            "init=sft",
            "dataset.max_new_tokens=1",
            "algorithm.temperature=1",
            f"algorithm.iterations={iterations}",
            "algorithm.rollouts_per_iteration=256",
            "algorithm.num_samples_per_prompt=256",
            "algorithm.batch_size=256",
            "algorithm.epochs=4",
            "algorithm.clip_range=0.5",
            "algorithm.validate_every=100",
            "algorithm.value_layers=0",
            f"algorithm.kl_coef={kl_coef}",
            *options,
            train=TRAIN[:1],
        )
        (prompt,) = ppo.job.prompts(TRAIN[:1], few_shot=False)
        asked = Rollout(prompt, ROLLOUTS[3].completion, None, False, ())
        start = distributions(reference(ppo), asked, 1.0)[0]
        token = int(start.argsort(descending=True)[10])
        monkeypatch.setattr(
            ppo.exploration,
            "reward",
            lambda given, _: [(float([*c.token_ids] == [token]),) for c in given],
        )
        played = Bandit([start[token].exp().item()])
        end_iteration = ppo.trainer.end_iteration

        def look(*args: Any) -> None:
            now = distributions(ppo.trainer.model.policy, asked, 1.0)[0]
            played.paid.append(now[token].exp().item())
            played.kl.append((now.exp() * (now - start)).sum().item())
            end_iteration(*args)

        monkeypatch.setattr(ppo.trainer, "end_iteration", look)
        ppo.train()
        return played

    return play


def test_the_token_that_is_paid_for_becomes_likely(bandit: Callable[..., Bandit]) -> None:
    played = bandit(0.0, "algorithm.final_learning_rate=1e-2", iterations=8)
    assert played.paid[0] < 0.05
    assert all(later > 0.95 * earlier for earlier, later in zip(played.paid, played.paid[1:]))  # noqa: B905
    assert played.paid[-1] > 0.9
    assert played.kl[-1] > 2.0


@pytest.mark.slow
def test_kl_holds_the_policy_at_its_optimum(bandit: Callable[..., Bandit]) -> None:
    """Which is π_ref exp(reward / β), normalised."""
    played = bandit(0.25, "algorithm.final_learning_rate=1e-4", iterations=16)
    before = played.paid[0]
    odds = math.exp(1 / 0.25) * before
    assert played.paid[-1] == pytest.approx(odds / (odds + 1 - before), abs=0.06)  # 0.42


def test_a_large_kl_coef_holds_it_at_the_reference(bandit: Callable[..., Bandit]) -> None:
    played = bandit(10.0, iterations=8)
    assert played.kl[-1] < 0.1  # 3.5 without
