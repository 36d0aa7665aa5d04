"""The learner: masks, micro-batches, the schedule, and a fit that goes on after a kill."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning import supervised
from reasonrl.learning.checkpoint import Checkpoints, weights_hash
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.learning.supervised import (
    Example,
    Gradients,
    Reader,
    accumulate_gradients,
    collate,
    fit,
    micro_batches,
    num_steps,
    shares,
    with_end,
)
from reasonrl.runs.metrics_log import MetricsLog, reproducible
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion, FinishReason

LEARNER = LearnerConfig(
    epochs=2,
    batch_size=4,
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    warmup_fraction=0.2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    micro_batch_tokens=40,
)
EOS, PAD = 0, 1  # the ids in models/tiny's vocabulary


def of_lengths(*lengths: int) -> list[Example]:
    return [Example((5,), (7,) * (length - 1)) for length in lengths]


def ragged(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            tuple(map(int, rng.integers(2, 268, rng.integers(1, 9)))),
            (*map(int, rng.integers(2, 268, rng.integers(1, 9))), EOS),
        )
        for _ in range(count)
    ]


def gradients(
    model: nn.Module, examples: Sequence[Example], max_tokens: int
) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = accumulate_gradients(Reader(model), examples, max_tokens, torch.float32)  # type: ignore[arg-type]
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_collate_shifts_pads_on_the_right_and_masks_by_lengths() -> None:
    batch = collate([Example((11, 12), (13, 0)), Example((21, 22, 23), (1, 24, 0))])
    assert batch.input_ids.tolist() == [[11, 12, 13, 0, 0], [21, 22, 23, 1, 24]]
    # From the end of the shortest prompt, two tokens: what both prompts cover needs no logits.
    assert batch.target_ids.tolist() == [[13, 0, 0, 0], [23, 1, 24, 0]]
    assert batch.loss_mask.tolist() == [[True, True, False, False], [False, True, True, True]]


def test_micro_batches_are_cut_before_they_hold_too_many_tokens_with_padding() -> None:
    cut = list(micro_batches(of_lengths(5, 12, 3, 5, 2, 9), max_tokens=10))
    # 2 x 3 = 6 fit, 3 x 5 = 15 don't; 2 x 5 = 10 fit; 9 and 12 stand alone, 12 though it is over
    assert [[len(e) for e in batch] for batch in cut] == [[2, 3], [5, 5], [9], [12]]


def test_processes_share_a_step_in_as_many_passes_each() -> None:
    examples = of_lengths(5, 12, 3, 5, 2, 9, 4)
    dealt = [list(shares(examples, 10, Process(rank, 2))) for rank in range(2)]
    # by length 2, 3, 4, 5, 5, 9, 12: one process takes 2, 4, 5, 12 and the other 3, 5, 9
    lengths = [[([len(e) for e in batch], weight) for batch, weight in part] for part in dealt]
    assert lengths == [
        [([2, 4], 2.0), ([5], 2.0), ([12], 2.0)],
        [([3, 5], 2.0), ([9], 2.0), ([2], 0.0)],
    ]


def test_a_process_without_a_share_reads_an_example_that_weighs_nothing() -> None:
    (one,) = of_lengths(5)
    assert list(shares([one], 10, Process(0, 2))) == [([one], 2.0)]
    assert list(shares([one], 10, Process(1, 2))) == [([one], 0.0)]


def test_a_process_alone_reads_the_micro_batches_as_they_are() -> None:
    examples = ragged(9)
    alone = [(batch, 1.0) for batch in micro_batches(examples, 30)]
    assert list(shares(examples, 30, ALONE)) == alone
    assert list(shares([], 30, ALONE)) == []


class Bigram(nn.Module):
    """Logits are a table's row of the current token, so nothing else of a prompt can matter."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, 5))

    def forward(self, input_ids: Tensor, logits_to_keep: int, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]])


def test_only_completion_tokens_are_trained_on() -> None:
    model = Bigram()
    # The second example's prompt is longer, so its last two tokens lie in the kept positions.
    loss, (gradient,) = gradients(model, [Example((4,), (2,)), Example((3, 3, 4), (2, 0))], 100)
    assert loss == pytest.approx(math.log(5), abs=1e-6)  # a table of zeros is uniform over 5
    # Three targets: 2 after 4, 2 after 4, 0 after 2. A row's gradient is the sum over its targets
    # of softmax (1/5 each) less the target, over 3.
    expected = torch.zeros(5, 5)
    expected[4] = torch.tensor([2 / 15, 2 / 15, 2 / 15 - 2 / 3, 2 / 15, 2 / 15])
    expected[2] = torch.tensor([1 / 15 - 1 / 3, 1 / 15, 1 / 15, 1 / 15, 1 / 15])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_a_token_counts_as_its_example_weighs() -> None:
    light, heavy = Example((4,), (2,), weight=0.5), Example((3, 3, 4), (2, 0), weight=1.25)
    for max_tokens in (100, 1):  # together, and each by itself
        loss, (gradient,) = gradients(Bigram(), [heavy, light], max_tokens)
        # (0.5 + 2 · 1.25) / 3 tokens, each of log 5
        assert loss == pytest.approx(math.log(5), abs=1e-6)
        # 2 after 4 with 0.5 + 1.25 = 7/4, 0 after 2 with 5/4; softmax less the target, over 3
        expected = torch.zeros(5, 5)
        expected[4] = torch.tensor([7 / 60, 7 / 60, 7 / 60 - 7 / 12, 7 / 60, 7 / 60])
        expected[2] = torch.tensor([5 / 60 - 5 / 12, 5 / 60, 5 / 60, 5 / 60, 5 / 60])
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_weights_of_one_and_none_are_the_same_to_the_bit(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, examples = make_model(), ragged(5)
    assert collate(examples).weights is None
    loss, plain = gradients(model, examples, 40)
    same, ones = gradients(model, [dataclasses.replace(e, weight=1.0) for e in examples], 40)
    assert loss == same
    assert all(torch.equal(one, other) for one, other in zip(plain, ones, strict=True))


def test_loss_is_the_mean_over_completion_tokens_of_a_plain_forward_pass(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, examples = make_model(), ragged(3)
    total, count = 0.0, 0
    for example in examples:
        ids = example.prompt_ids + example.completion_ids
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        for place in range(len(example.prompt_ids), len(ids)):
            total -= logprobs[place - 1, ids[place]].item()
            count += 1
    loss, _ = gradients(model, examples, 1000)
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_padding_changes_neither_loss_nor_gradients(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model = make_model()
    short, long = Example((5, 6), (7, 0)), Example((5,), (8,) * 29 + (0,))
    alone, gradient_alone = gradients(model, [short], 1000)
    _, gradient_long = gradients(model, [long], 1000)
    _, together = gradients(model, [short, long], 1000)
    # 2 and 30 of the 32 tokens
    for both, one, other in zip(together, gradient_alone, gradient_long, strict=True):
        torch.testing.assert_close(both, (2 * one + 30 * other) / 32, rtol=1e-4, atol=1e-7)
    assert alone > 0


def test_one_micro_batch_of_eight_and_eight_of_one_give_equal_gradients(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, examples = make_model().double(), ragged(8)
    assert len(list(micro_batches(examples, 10_000))) == 1
    assert len(list(micro_batches(examples, 1))) == 8
    loss, gradient = gradients(model, examples, 10_000)
    loss_of_eight, gradient_of_eight = gradients(model, examples, 1)
    assert loss_of_eight == pytest.approx(loss, abs=1e-6)
    for one, eight in zip(gradient, gradient_of_eight, strict=True):
        torch.testing.assert_close(eight, one, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("special", [EOS, PAD])
def test_a_special_id_within_a_completion_trains_like_any_other(special: int) -> None:
    with_special = collate([Example((5,), (7, special, 7, EOS)), Example((5,), (7,))])
    assert with_special.loss_mask.tolist() == [[True] * 4, [True, False, False, False]]
    _, (gradient,) = gradients(Bigram(), [Example((4,), (2, special, 3))], 100)
    # the target `special` after 2: (1/5 - 1) / 3; and the target 3 after `special`
    assert gradient[2, special].item() == pytest.approx(-4 / 15, abs=1e-6)
    assert gradient[special, 3].item() == pytest.approx(-4 / 15, abs=1e-6)


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The examples of each optimizer step, recorded instead of learnt from."""
    taken: list[list[Example]] = []

    def record(_model: nn.Module, examples: Sequence[Example], *_: Any) -> float:
        taken.append(list(examples))
        return 0.0

    monkeypatch.setattr(supervised, "accumulate_gradients", record)
    return taken


def learn(model: Any, examples: Sequence[Example]) -> float:
    return supervised.accumulate_gradients(
        Reader(model), examples, LEARNER.micro_batch_tokens, torch.float32
    )


class Killed(BaseException):
    pass


def run_fit(
    model: nn.Module,
    examples: Sequence[Any],
    folder: Path,
    *,
    learner: LearnerConfig = LEARNER,
    seed: int = 3,
    kill_at: int | None = None,
    on_steps: list[int] | None = None,
    gradients: Gradients | None = None,
) -> list[dict[str, Any]]:
    done: Iterator[int] = iter(range(1, 1000))

    def on_step(n: int) -> None:
        if on_steps is not None:
            on_steps.append(n)
        if next(done) == kill_at:
            raise Killed

    with MetricsLog(folder / "metrics.jsonl") as log:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimization = Optimization(
            model,
            [Group(trained, learner.learning_rate)],
            learner,
            num_steps(len(examples), learner),
            name="sft",
            checkpoints=Checkpoints(folder / "checkpoints"),
            checkpoint_seconds=0,
            log=log,
        )
        fit(
            optimization,
            examples,
            gradients or partial(learn, model),
            seed=seed,
            on_step=on_step,
        )
    return reproducible(folder / "metrics.jsonl")


@pytest.mark.usefixtures("steps_taken")
def test_learning_rate_rises_to_its_peak_and_ends_at_its_final_value(tmp_path: Path) -> None:
    # 2 epochs of 20 examples in batches of 4 are 10 steps, 2 of them warm-up.
    rates = [m["sft/learning_rate"] for m in run_fit(Bigram(), of_lengths(*[2] * 20), tmp_path)]
    assert len(rates) == 10
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    # Halfway down the cosine: 1e-5 + (1e-3 - 1e-5) / 2
    assert rates[5] == pytest.approx(0.505e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.usefixtures("steps_taken")
def test_a_single_step_learns_at_the_peak(tmp_path: Path) -> None:
    learner = dataclasses.replace(LEARNER, epochs=1)
    (only,) = run_fit(Bigram(), of_lengths(2, 3), tmp_path, learner=learner)
    assert only["sft/learning_rate"] == pytest.approx(1e-3)


def test_every_example_is_learnt_from_once_an_epoch(
    tmp_path: Path, steps_taken: list[list[Example]]
) -> None:
    examples = of_lengths(*range(2, 12))
    run_fit(Bigram(), examples, tmp_path)
    assert [len(step) for step in steps_taken] == [4, 4, 2, 4, 4, 2]
    for epoch in (steps_taken[:3], steps_taken[3:]):
        assert sorted(len(e) for step in epoch for e in step) == list(range(2, 12))
    assert steps_taken[:3] != steps_taken[3:]  # each epoch in an order of its own


def test_the_order_follows_the_seed(tmp_path: Path, steps_taken: list[list[Example]]) -> None:
    examples = of_lengths(*range(2, 12))
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_fit(Bigram(), examples, tmp_path / folder, seed=seed)
    first, again, other = steps_taken[:6], steps_taken[6:12], steps_taken[12:]
    assert first == again
    assert first != other


def test_fit_takes_other_gradients_and_leaves_frozen_parameters_alone(tmp_path: Path) -> None:
    model = nn.Module()
    model.free, model.frozen = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    model.frozen.requires_grad_(False)
    model.frozen.grad = torch.ones(2)  # left from before it was frozen
    seen = []

    def gradients(examples: Sequence[str]) -> float:
        seen.append(sorted(examples))
        model.free.grad = torch.tensor([3.0, 4.0])
        return 0.25

    learner = dataclasses.replace(LEARNER, epochs=1, weight_decay=0.0)
    (logged,) = run_fit(model, ["a", "bc"], tmp_path, learner=learner, gradients=gradients)
    assert seen == [["a", "bc"]]
    assert logged["sft/loss"] == 0.25
    assert logged["sft/grad_norm"] == 5.0
    # Adam's first step is the learning rate, against the gradient's sign.
    assert model.free.tolist() == pytest.approx([-1e-3, -1e-3], abs=1e-8)
    assert model.frozen.tolist() == [1.0, 1.0]


def test_a_killed_fit_goes_on_bit_for_bit(
    tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    examples = ragged(10)  # 3 steps an epoch
    straight = make_model(attention_dropout=0.5)
    start = weights_hash(straight)
    metrics = run_fit(straight, examples, tmp_path / "straight")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert weights_hash(straight) != start

    with pytest.raises(Killed):  # in mid-epoch; step 5 was logged, but its weights are lost
        run_fit(make_model(attention_dropout=0.5), examples, tmp_path / "killed", kill_at=5)
    resumed, on_steps = make_model(seed=9, attention_dropout=0.5), list[int]()
    torch.manual_seed(1)
    assert run_fit(resumed, examples, tmp_path / "killed", on_steps=on_steps) == metrics
    assert on_steps == [4, 1, 1]  # four from the checkpoint, two anew
    assert weights_hash(resumed) == weights_hash(straight)


def test_dropout_depends_on_the_seed_alone(
    tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    hashes = set()
    for attempt in range(2):
        model = make_model(attention_dropout=0.5)
        torch.manual_seed(attempt)  # whatever else the process drew before
        run_fit(model, ragged(4), tmp_path / str(attempt))
        hashes.add(weights_hash(model))
    assert len(hashes) == 1


def masked(mask: tuple[bool, ...] | None, *, last: int = 0) -> Example:
    return Example((4,), (1, 2, last), mask)


def test_collate_puts_a_loss_mask_where_its_completion_is() -> None:
    examples = [
        Example((11, 12), (91, 13, 0), (False, True, True)),
        Example((21, 22, 23), (92, 24, 93, 0), (False, True, False, False)),
        Example((31,), (32, 0)),
    ]
    batch = collate(examples)
    assert batch.target_ids.tolist() == [
        [12, 91, 13, 0, 0, 0],
        [22, 23, 92, 24, 93, 0],
        [32, 0, 0, 0, 0, 0],
    ]
    assert batch.loss_mask.tolist() == [
        [False, False, True, True, False, False],
        [False, False, False, True, False, False],
        [True, True, False, False, False, False],
    ]
    assert [example.num_targets for example in examples] == [2, 1, 2]


def test_a_masked_token_is_read_and_not_learnt() -> None:
    model = Bigram()
    model.table.data[2, 0] = math.log(4)
    # Targets: 1 after 4, which is masked; 2 after 1, of 5 equals; 0 after 2, 4 of 8.
    loss, (gradient,) = gradients(model, [masked((False, True, True))], 100)
    assert loss == pytest.approx(1.151293, abs=1e-6)  # (ln 5 + ln 2) / 2
    # (softmax - target) / 2: (1/5) / 2 and (1/5 - 1) / 2; (1/8) / 2 and (1/2 - 1) / 2.
    expected = torch.zeros(5, 5)
    expected[1] = torch.tensor([0.1, 0.1, -0.4, 0.1, 0.1])
    expected[2] = torch.tensor([-0.25, 0.0625, 0.0625, 0.0625, 0.0625])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_every_learnt_token_of_a_step_weighs_the_same_whatever_the_masks() -> None:
    model = Bigram()
    model.table.data[2, 0] = math.log(4)
    examples = [masked((False, False, True)), masked((True, True, False)), masked(None)]
    # ln 2; ln 5 + ln 5; ln 5 + ln 5 + ln 2: over 1 + 2 + 3 tokens, in one pass or in three.
    for max_tokens in (100, 1):
        loss, _ = gradients(model, examples, max_tokens)
        assert loss == pytest.approx(1.304007, abs=1e-6)  # (4 ln 5 + 2 ln 2) / 6


def test_what_a_masked_token_is_does_not_matter_to_what_comes_before_it(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, mask = make_model(), (True, True, False)
    loss, gradient = gradients(model, [masked(mask, last=0)], 100)
    other_loss, other_gradient = gradients(model, [masked(mask, last=7)], 100)
    assert loss == other_loss
    for one, other in zip(gradient, other_gradient, strict=True):
        assert torch.equal(one, other)
    # A label in front is read: what comes after it is another question then.
    first, _ = gradients(model, [Example((4,), (1, 2, 0), (False, True, True))], 100)
    second, _ = gradients(model, [Example((4,), (7, 2, 0), (False, True, True))], 100)
    assert first != second


def test_masked_loss_is_the_mean_over_learnt_tokens_of_a_plain_forward_pass(
    make_model: Callable[..., LlamaForCausalLM],
) -> None:
    model, rng = make_model(), np.random.default_rng(1)
    examples = [
        dataclasses.replace(e, loss_mask=(*map(bool, rng.integers(2, size=len(e.completion_ids))),))
        for e in ragged(6)
    ]
    losses = []
    for example in examples:
        ids = torch.tensor(example.prompt_ids + example.completion_ids)
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        for place, learnt in enumerate(example.loss_mask or (), start=len(example.prompt_ids)):
            if learnt:
                losses.append(-logprobs[place - 1, ids[place]].item())
    assert 0 < len(losses) < sum(len(e.completion_ids) for e in examples)
    for max_tokens in (1000, 20):
        loss, _ = gradients(model, examples, max_tokens)
        assert loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_no_mask_is_a_mask_of_all() -> None:
    none, every = masked(None), masked((True, True, True))
    assert none.num_targets == every.num_targets == 3
    assert torch.equal(collate([none]).loss_mask, collate([every]).loss_mask)
    loss, (gradient,) = gradients(Bigram(), [none], 100)
    loss_of_every, (gradient_of_every,) = gradients(Bigram(), [every], 100)
    assert loss == loss_of_every
    assert torch.equal(gradient, gradient_of_every)


@pytest.mark.parametrize(
    ("finish_reason", "token_ids", "learnt"),
    [
        ("eos", (7, 8, EOS), (7, 8, EOS)),  # it has one
        ("stop", (7, 8), (7, 8, EOS)),  # a delimiter was its end
        ("stop", (), (EOS,)),
        ("length", (7, 8), (7, 8)),  # it was not over
    ],
)
def test_eos_is_learnt_where_a_completion_ended(
    finish_reason: FinishReason, token_ids: tuple[int, ...], learnt: tuple[int, ...]
) -> None:
    completion = Completion("p", 0, token_ids, (0.0,) * len(token_ids), finish_reason, "")
    assert with_end(completion, EOS) == learnt
