"""The network of a reward model: its logits against their formula, its loss, what of it is trained,
the guess it starts from and its calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.learning.supervised import fit, micro_batches
from reasonrl.policy.policy import Policy, load_policy, save_policy
from reasonrl.reward_models import network as reward_network
from reasonrl.reward_models.network import (
    TEMPERATURES,
    Labelled,
    RewardNetwork,
    Trainable,
    build,
    calibrate,
    fit_platt,
    guess_from_likelihood,
    label_gradients,
    merge_lora,
)
from reasonrl.runs.metrics_log import MetricsLog, reproducible

CPU = torch.device("cpu")

with_and_without_likelihood = pytest.mark.parametrize("likelihood", [False, True])


@pytest.fixture
def policy(
    make_model: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> str:
    """A folder. Weights as large as these make the likelihoods of tokens differ."""
    save_policy(Policy(make_model(initializer_range=0.2), tokenizer), tmp_path / "policy")
    return str(tmp_path / "policy")


def build_here(
    path: str, trainable: Trainable = "all", *, likelihood: bool = True, seed: int = 0
) -> RewardNetwork:
    policy = load_policy(path, "float32", CPU).model
    return build(policy, trainable, likelihood=likelihood, lora_rank=2, seed=seed)


def randomise_head(network: RewardNetwork) -> None:
    """A head of zeros would hide everything that comes before it."""
    torch.manual_seed(5)
    nn.init.normal_(network.score.weight)
    nn.init.normal_(network.score.bias)
    if network.scale is not None:
        nn.init.constant_(network.scale.factor, 0.3)


def ragged_labelled(count: int) -> list[Labelled]:
    rng = np.random.default_rng(0)

    def one() -> Labelled:
        prompt, ids = rng.integers(2, 268, rng.integers(1, 9)), rng.integers(2, 268, 1 + count)
        ids = ids[: rng.integers(1, 1 + count)]
        targets = [None if rng.random() < 0.4 else float(rng.integers(0, 2)) for _ in ids]
        return Labelled(tuple(prompt), tuple(ids), (*targets[1:], 1.0), float(rng.integers(1, 4)))

    return [one() for _ in range(count)]


def likelihood_sums(model: LlamaForCausalLM, one: Labelled) -> Tensor:
    """Σ_{i ≤ t} log π of each completion token t, from a pass without padding."""
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    logprobs = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    place = len(one.prompt_ids)
    sums = [torch.zeros(())]
    for i, token in enumerate(one.completion_ids):
        sums.append(sums[-1] + logprobs[place + i - 1, token])
    return torch.stack(sums[1:])


def formula(network: RewardNetwork, one: Labelled) -> Tensor:
    """w · h_t + b + s Σ log π at each completion token, from passes without padding."""
    model: Any = network.policy
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    hidden = model.model(input_ids=ids).last_hidden_state[0, len(one.prompt_ids) :]
    logits: Tensor = hidden @ network.score.weight[0] + network.score.bias[0]
    if network.scale is not None:
        logits = logits + network.scale(likelihood_sums(model, one))
    return logits


def logits_of(network: RewardNetwork, labelled: Sequence[Labelled]) -> list[Tensor]:
    """From one padded batch, without the padding."""
    with torch.no_grad():
        logits = network(labelled, torch.float32)
    return [row[: len(one.completion_ids)] for row, one in zip(logits, labelled, strict=True)]


# The logits


@with_and_without_likelihood
def test_logits_are_those_of_the_formula_whatever_the_padding(
    policy: str, likelihood: bool
) -> None:
    network, labelled = build_here(policy, likelihood=likelihood), ragged_labelled(12)
    randomise_head(network)
    together = logits_of(network, labelled)
    for one, logits in zip(labelled, together, strict=True):
        expected = formula(network, one).detach()
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        (alone,) = logits_of(network, [one])
        torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
    assert torch.cat(together).std() > 0.1  # else the checks above are idle


@with_and_without_likelihood
def test_an_untrained_network_says_one_half(policy: str, likelihood: bool) -> None:
    for logits in logits_of(build_here(policy, likelihood=likelihood), ragged_labelled(3)):
        assert logits.sigmoid().tolist() == [0.5] * len(logits)


def test_bfloat16_logits_are_near(policy: str) -> None:
    network, labelled = build_here(policy), ragged_labelled(6)
    randomise_head(network)
    with torch.no_grad():
        full, half = (network(labelled, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.2


def test_adapters_have_no_dropout(policy: str) -> None:
    network, labelled = build_here(policy, "lora"), ragged_labelled(4)
    randomise_network(network)
    evaluated = torch.cat(logits_of(network.eval(), labelled))
    trained = torch.cat(logits_of(network.train(), labelled))
    assert torch.equal(evaluated, trained)


def randomise_network(network: RewardNetwork) -> None:
    """The adapters too, whose second factor starts at zero."""
    randomise_head(network)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


# The loss


class Table(nn.Module):
    """A token's logit is its entry, so nothing that comes before can matter; padding is NaN."""

    device = CPU

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([0.0, 0.0, math.log(3), 0.0, 0.0]))

    def forward(self, batch: Sequence[Labelled], compute_dtype: torch.dtype) -> Tensor:
        assert compute_dtype == torch.float32
        rows = [self.table[list(one.completion_ids)] for one in batch]
        return pad_sequence(rows, batch_first=True, padding_value=math.nan)


def gradients(
    network: nn.Module, labelled: Sequence[Labelled], max_tokens: int
) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad()
    loss = label_gradients(network, labelled, max_tokens, torch.float32)  # type: ignore[arg-type]
    return loss, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_tokens", [1, 100])
def test_the_loss_is_the_weighted_mean_over_tokens_with_a_target(max_tokens: int) -> None:
    labelled = [
        Labelled((4, 4), (3, 2, 3), (None, 1.0, None), weight=2.0),
        Labelled((3,), (1, 2), (0.0, 0.5)),
    ]
    loss, gradient = gradients(Table(), labelled, max_tokens)
    # Token 2 has p = 3/4. -ln 3/4 = 0.287682 with weight 2; -ln 1/2 = 0.693147 for token 1;
    # -(ln 3/4 + ln 1/4) / 2 = 0.836988: together 2.105499 over a weight of 2 + 1 + 1.
    assert loss == pytest.approx(2.105499 / 4, abs=1e-6)
    # p less the target, times the weight: token 1 (1/2 - 0) / 4; token 2 (2 (3/4 - 1) + 1/4) / 4
    expected = torch.tensor([0.0, 0.125, -0.0625, 0.0, 0.0])
    torch.testing.assert_close(gradient["table"], expected, rtol=0, atol=1e-6)


@with_and_without_likelihood
def test_one_micro_batch_of_eight_and_eight_of_one_give_equal_gradients(
    policy: str, likelihood: bool
) -> None:
    network, labelled = build_here(policy, likelihood=likelihood), ragged_labelled(8)
    randomise_head(network)
    assert len(list(micro_batches(labelled, 10_000))) == 1
    assert len(list(micro_batches(labelled, 1))) == 8
    loss, gradient = gradients(network, labelled, 10_000)
    loss_of_eight, gradient_of_eight = gradients(network, labelled, 1)
    assert loss_of_eight == pytest.approx(loss, abs=1e-5)
    for name, one in gradient.items():
        torch.testing.assert_close(gradient_of_eight[name], one, rtol=1e-4, atol=1e-5)


def test_labels_reach_the_trunk_through_the_likelihood(policy: str) -> None:
    one = Labelled((4, 5, 6), (7, 8, 9), (None, 0.0, 1.0))  # b gains nothing: as many 0 as 1
    network = build_here(policy)
    nn.init.constant_(network.scale.factor, 0.1)  # type: ignore[arg-type]  # w stays zero
    _, gradient = gradients(network, [one], 100)
    network.zero_grad()
    logits = formula(network, one)
    F.binary_cross_entropy_with_logits(logits[1:], torch.tensor([0.0, 1.0])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert gradient[name].abs().max() > 1e-3, name

    _, gradient = gradients(build_here(policy, likelihood=False), [one], 100)
    assert {name for name in gradient if gradient[name].any()} == {"score.weight"}


@pytest.mark.parametrize("targets", [(1.0,), (None, None)])
def test_labels_that_teach_nothing_or_miss_a_token_are_refused(
    targets: tuple[float | None, ...],
) -> None:
    with pytest.raises(ValueError, match="target"):
        Labelled((4,), (1, 2), targets)


# What is trained


def run_fit(
    network: RewardNetwork, folder: Path, on_step: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """2 epochs of 3 steps; a checkpoint after each. Only a gradient changes a weight."""
    learner = LearnerConfig(
        epochs=2,
        batch_size=4,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
        warmup_fraction=0.2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        micro_batch_tokens=40,
    )
    with MetricsLog(folder / "metrics.jsonl") as log:
        optimization = Optimization(
            network,
            [Group([p for p in network.parameters() if p.requires_grad], 1e-2)],
            learner,
            total_steps=6,
            name="orm",
            checkpoints=Checkpoints(folder / "checkpoints"),
            checkpoint_seconds=0,
            log=log,
        )
        fit(
            optimization,
            ragged_labelled(10),
            lambda batch: label_gradients(network, batch, 40, torch.float32),
            seed=3,
            on_step=on_step,
        )
    return reproducible(folder / "metrics.jsonl")


@with_and_without_likelihood
@pytest.mark.parametrize("trainable", ["all", "head", "lora"])
def test_only_what_is_to_be_trained_changes(
    policy: str, tmp_path: Path, trainable: Trainable, likelihood: bool
) -> None:
    network = build_here(policy, trainable, likelihood=likelihood)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trunk = weights_hash(network.policy)
    losses = [m["orm/loss"] for m in run_fit(network, tmp_path)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    head = {"score.weight", "score.bias"} | ({"scale.factor"} if likelihood else set())
    if trainable == "all":  # nothing but the likelihood reads the language modelling head
        assert changed == set(before) - (set() if likelihood else {"policy.lm_head.weight"})
    elif trainable == "head":
        assert changed == head
        assert weights_hash(network.policy) == trunk
    else:
        assert head < changed
        # 7 linear layers in each of 2 blocks, two factors each
        assert len(changed - head) == 7 * 2 * 2
        assert all("lora_" in name for name in changed - head)


@with_and_without_likelihood
def test_merged_adapters_compute_what_they_did_before(policy: str, likelihood: bool) -> None:
    network, labelled = build_here(policy, "lora", likelihood=likelihood), ragged_labelled(4)
    randomise_head(network)
    plain = torch.cat(logits_of(network, labelled))
    randomise_network(network)
    before = torch.cat(logits_of(network, labelled))
    assert (before - plain).abs().max() > 0.1  # of the adapters
    merge_lora(network)
    after = torch.cat(logits_of(network, labelled))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    without = build_here(policy, likelihood=likelihood)
    assert set(network.state_dict()) == set(without.state_dict())
    assert type(network.policy) is type(without.policy)
    assert not network.adapters


class Killed(BaseException):
    pass


@pytest.mark.parametrize("tied", [False, True])
def test_a_killed_fit_of_adapters_goes_on_bit_for_bit(
    tmp_path: Path,
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    tied: bool,
) -> None:
    policy = tmp_path / "policy"
    save_policy(Policy(make_model(tie_word_embeddings=tied), tokenizer), policy)

    def start() -> RewardNetwork:
        network = build_here(str(policy), "lora")
        guess_from_likelihood(network, ragged_labelled(10), 40, torch.float32)
        return network

    straight = start()
    metrics = run_fit(straight, tmp_path / "straight")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]

    steps = iter(range(1, 7))

    def kill(_: int) -> None:
        if next(steps) == 5:
            raise Killed

    with pytest.raises(Killed):
        run_fit(start(), tmp_path / "killed", kill)
    done: list[int] = []
    torch.manual_seed(1)
    resumed = build_here(str(policy), "lora", seed=9)
    assert run_fit(resumed, tmp_path / "killed", done.append) == metrics
    assert done == [4, 1, 1]
    merge_lora(resumed)
    merge_lora(straight)
    assert weights_hash(resumed) == weights_hash(straight)


def test_adapters_start_the_same_whatever_was_drawn_before(policy: str) -> None:
    hashes = set()
    for attempt in range(2):
        torch.manual_seed(attempt)
        hashes.add(weights_hash(build_here(policy, "lora")))
    assert len(hashes) == 1
    assert weights_hash(build_here(policy, "lora", seed=1)) not in hashes


# The first guess


def test_the_first_guess_of_two_groups(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_here(policy)
    nn.init.zeros_(network.policy.lm_head.weight)
    # Each of the 268 tokens is equally likely: the sum is -ln 268 at a completion's first token,
    # -2 ln 268 at its second. 8 of 10 first tokens are right, 2 of 10 second ones.
    labelled = [
        *[Labelled((4,), (5, 6), (1.0, 0.0))] * 4,
        *[Labelled((4, 5), (6, 7), (1.0, 1.0))] * 2,
        *[Labelled((4,), (5,), (1.0,))] * 2,
        *[Labelled((4, 5, 6), (7, 8, 9), (None, 0.0, None))] * 2,
        *[Labelled((4,), (5, 6), (0.0, 0.0))] * 2,
    ]
    monkeypatch.setattr(reward_network, "FIRST_GUESS", len(labelled))
    ignored = [Labelled((4,), (5, 6), (0.0, 1.0))] * 9  # those after the first ones
    guess_from_likelihood(network, labelled + ignored, 12, torch.float32)
    # Of 10 right and 10 wrong, a right one's target is 11/12, a wrong one's 1/12: a first token's
    # average is (8 * 11 + 2) / 120 = 3/4, a second one's 1/4.
    # -s ln 268 + b = ln 3 and -2 s ln 268 + b = -ln 3: s = 2 ln 3 / ln 268, b = 3 ln 3
    assert network.scale is not None
    assert network.scale.factor.item() == pytest.approx(2 * math.log(3) / math.log(268), abs=1e-5)
    assert network.score.bias.item() == pytest.approx(3 * math.log(3), abs=1e-4)
    assert not network.score.weight.any()


def test_the_first_guess_is_a_regression_on_the_sums_of_a_plain_pass(policy: str) -> None:
    network, model = build_here(policy), build_here(policy).policy
    sums, right, labelled = [], [], []
    for i, ragged in enumerate(ragged_labelled(20)):
        one = Labelled(
            ragged.prompt_ids, ragged.completion_ids[:4], (1.0,) * len(ragged.targets[:4])
        )
        with torch.no_grad():
            of_tokens = likelihood_sums(model, one).tolist()  # type: ignore[arg-type]
        # likely ones right, but for those of every fifth completion
        labels = [(so_far > -18) != (i % 5 == 0) for so_far in of_tokens]
        sums += of_tokens
        right += labels
        targets = tuple(0.9 if label else 0.1 for label in labels)
        labelled.append(dataclasses.replace(one, targets=targets))
    guess_from_likelihood(network, labelled, 60, torch.float32)
    temperature, bias = fit_platt(np.array(sums), np.array(right))
    assert TEMPERATURES[0] < temperature < TEMPERATURES[1]
    assert network.scale is not None
    assert network.scale.factor.item() == pytest.approx(1 / temperature, rel=1e-4)
    assert network.score.bias.item() == pytest.approx(bias, rel=1e-4)


def test_there_is_no_first_guess_without_likelihood(policy: str) -> None:
    network = build_here(policy, likelihood=False)
    before = weights_hash(network)
    guess_from_likelihood(network, ragged_labelled(4), 60, torch.float32)
    assert weights_hash(network) == before


# Calibration


def test_platt_scaling_of_two_groups() -> None:
    # 8 of the 10 at logit 2 are right, 2 of the 10 at -1. Of 10 right and 10 wrong, a right one's
    # target is 11/12, a wrong one's 1/12: at 2 they average (8 * 11 + 2) / 120 = 3/4, at -1 1/4.
    logits = np.repeat([2.0, -1.0], 10)
    labels = np.array([True] * 8 + [False] * 2 + [True] * 2 + [False] * 8)
    temperature, bias = fit_platt(logits, labels)
    # 2 a + b = ln 3 and -a + b = -ln 3: a = 2/3 ln 3 = 1 / 1.365359, b = -1/3 ln 3
    assert temperature == pytest.approx(1.365359, abs=1e-4)
    assert bias == pytest.approx(-0.366204, abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels", "temperature", "bias"),
    [
        # all right: the target is 9/10 whatever the logit, which weighs as little as it may; at
        # its mean, 0, ln 9
        ([-1.0, 1.0] * 4, [True] * 8, 20.0, 2.197),
        ([0.0] * 8, [False] * 8, 1.0, -2.197),  # nothing says how much a logit should weigh
        ([1.0] * 5 + [-1.0] * 5, [True] * 5 + [False] * 5, 0.558, 0.0),  # separable: 1 / ln 6
        ([0.01] * 98 + [-0.01] * 98, [True] * 98 + [False] * 98, 0.05, 0.0),  # would be 0.0022
        ([1.0] * 5 + [-1.0] * 5, [False] * 5 + [True] * 5, 20.0, 0.0),  # not reversed
    ],
)
def test_platt_scaling_stays_within_bounds(
    logits: list[float], labels: list[bool], temperature: float, bias: float
) -> None:
    fitted = fit_platt(np.array(logits), np.array(labels))
    assert fitted == pytest.approx((temperature, bias), abs=2e-3)


@with_and_without_likelihood
def test_calibration_is_folded_into_the_head(
    policy: str, likelihood: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, labelled = build_here(policy, likelihood=likelihood), ragged_labelled(5)
    randomise_head(network)
    before = torch.cat(logits_of(network, labelled))
    held_out = np.array([1.0, -1.0]), np.array([True, False])
    monkeypatch.setattr(
        reward_network, "fit_platt", lambda *args: (4.0, -0.5) if args == held_out else None
    )
    assert calibrate(network, *held_out) == (4.0, -0.5)
    after = torch.cat(logits_of(network, labelled))
    torch.testing.assert_close(after, before / 4 - 0.5, rtol=1e-5, atol=1e-5)
