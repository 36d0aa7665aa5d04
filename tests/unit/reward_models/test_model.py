"""Reward models at work and on disk: scoring against plain forward passes, what is saved, and what
is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reasonrl.learning.checkpoint import weights_hash
from reasonrl.policy.policy import load_policy
from reasonrl.problems.prompts import Plain
from reasonrl.reward_models import model as reward_model
from reasonrl.reward_models.model import RewardModel, question_hash
from reasonrl.reward_models.network import Labelled, build, calibrate
from reasonrl.runs.preemption import Preempted
from reasonrl.runs.process import Process
from reasonrl.types import Completion, Problem
from reasonrl.util.errors import UserError

CPU = torch.device("cpu")
TEMPLATE = Plain("Q: {question}\nA:")
PROBLEMS = [
    Problem("short", "Rosa has 6 coins.", "6", ""),
    Problem("long", "Rosa has 6 coins. Ana gives 9 books to Lea. Omar sells 19 pencils.", "9", ""),
    Problem("middle", "Ana gives 9 books to Lea. Rosa has 6 coins.", "6", ""),
]

with_and_without_likelihood = pytest.mark.parametrize("scorer", [False, True], indirect=True)


@pytest.fixture
def scorer(
    request: pytest.FixtureRequest,
    random_policy: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> RewardModel:
    """With likelihood unless the test says otherwise."""
    likelihood = getattr(request, "param", True)
    trunk = load_policy(random_policy, "float32", CPU).model
    network = build(trunk, "all", likelihood=likelihood, lora_rank=1, seed=0)
    torch.manual_seed(5)
    with torch.no_grad():  # a head of zeros would hide everything that comes before it
        nn.init.normal_(network.score.weight)
        nn.init.normal_(network.score.bias)
        network.policy.lm_head.weight.mul_(20)
        if network.scale is not None:
            network.scale.factor.fill_(0.1)
    hashes = frozenset({question_hash("Was this seen?")})
    return RewardModel(tmp_path / "scorer", tokenizer, TEMPLATE, hashes, network.eval())


def completion(problem: Problem, token_ids: Sequence[int]) -> Completion:
    return Completion(problem.id, 0, tuple(token_ids), (-0.5,) * len(token_ids), "length", "")


def ragged_completions(count: int) -> tuple[list[Completion], list[Problem]]:
    """Of 0 to 19 random ids, special ones among them, the problems in turn."""
    rng = np.random.default_rng(0)
    problems = [PROBLEMS[i % len(PROBLEMS)] for i in range(count)]
    lengths = [0, *rng.integers(1, 20, count - 1)]
    return [
        completion(problem, rng.integers(0, 268, length).tolist())
        for problem, length in zip(problems, lengths, strict=True)
    ], problems


# Scoring


def plain_logits(scorer: RewardModel, completion: Completion, problem: Problem) -> list[float]:
    """Of the network, from one pass of prompt and completion without padding or a shared prompt."""
    prompt = scorer.tokenizer(TEMPLATE.asked(problem))["input_ids"]
    if not completion.token_ids:
        return []
    one = Labelled(tuple(prompt), tuple(completion.token_ids), (1.0,) * len(completion.token_ids))
    with torch.no_grad():
        logits: list[float] = scorer.network([one], torch.float32)[0].tolist()
    return logits


@with_and_without_likelihood
@pytest.mark.parametrize("tokens_in_flight", [1, 100, 10_000])
def test_logits_are_those_of_a_full_pass(
    scorer: RewardModel, tokens_in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "TOKENS_IN_FLIGHT", tokens_in_flight)
    completions, problems = ragged_completions(20)
    progress: list[int] = []
    scored = scorer.token_logits(completions, problems, progress.append)
    assert sum(progress) == 20
    assert len({len(c.token_ids) for c in completions}) > 5
    for logits, one, problem in zip(scored, completions, problems, strict=True):
        assert logits.tolist() == pytest.approx(plain_logits(scorer, one, problem), abs=1e-5)
    assert np.concatenate(scored).std() > 0.1  # else the check above is idle


def test_probabilities_do_not_depend_on_the_batch(scorer: RewardModel) -> None:
    completions, problems = ragged_completions(20)
    together = scorer.token_probabilities(completions, problems)
    (alone,) = scorer.token_probabilities(completions[4:5], problems[4:5])
    assert alone.tolist() == pytest.approx(together[4].tolist(), abs=1e-5)
    backwards = scorer.token_probabilities(completions[::-1], problems[::-1])[::-1]
    for one, other in zip(together, backwards, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-5)
    finals = scorer.final(completions, problems)
    assert finals[0] == 0.0  # of the empty completion
    assert finals[1:] == pytest.approx([float(p[-1]) for p in together[1:]], abs=1e-5)


def test_a_pass_holds_its_share_of_tokens_prompts_included(
    scorer: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = scorer.tokenizer(TEMPLATE.asked(PROBLEMS[0]))["input_ids"]
    monkeypatch.setattr(reward_model, "TOKENS_IN_FLIGHT", 3 * (len(prompt) + 5))
    progress: list[int] = []
    completions = [completion(PROBLEMS[0], (7,) * 5)] * 8 + [completion(PROBLEMS[0], ())]
    scorer.token_logits(completions, PROBLEMS[:1] * 9, progress.append)
    assert progress == [3, 3, 2, 1]  # the empty one at last


def test_no_completions_have_no_scores(scorer: RewardModel) -> None:
    assert scorer.token_probabilities([], []) == []
    assert scorer.final([completion(PROBLEMS[0], ())], PROBLEMS[:1]) == [0.0]


def test_a_logit_becomes_a_probability(
    scorer: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = [np.array([0.0, math.log(3)]), np.array([])]
    monkeypatch.setattr(RewardModel, "token_logits", lambda *_: logits)
    first, empty = scorer.token_probabilities([], [])
    assert first.tolist() == pytest.approx([0.5, 0.75])
    assert empty.tolist() == []
    assert scorer.final([], []) == pytest.approx([0.75, 0.0])


class Deaf(Process):
    """One of several processes, which hears nothing of the others."""

    def agree(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
        return stop, due

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def first(self, make: Callable[[], Any]) -> Any:
        return make()


def test_processes_score_a_share_each_to_the_same_bits(
    scorer: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "TOKENS_IN_FLIGHT", 100)
    completions, problems = ragged_completions(20)
    alone = scorer.token_logits(completions, problems)
    scored: set[int] = set()
    for rank, count in enumerate([8, 6, 5]):
        process, progress = Deaf(rank, 3), list[int]()
        share = scorer.token_logits(completions, problems, progress.append, process)
        own = {i for i, logits in enumerate(share) if len(logits)}
        assert len(own) == count
        assert sum(progress) == count + process.is_main  # the empty one is counted once
        for i in own:
            np.testing.assert_array_equal(share[i], alone[i])
        assert not own & scored
        scored |= own
    assert scored == {i for i, c in enumerate(completions) if c.token_ids}


def test_scoring_stops_if_another_process_is_told_to(scorer: RewardModel) -> None:
    class Stopped(Deaf):
        def agree(self, *, stop: bool, due: bool) -> tuple[bool, bool]:
            return not stop, due

    with pytest.raises(Preempted):
        scorer.final(*ragged_completions(2), None, Stopped(0, 2))


def test_scoring_leaves_the_model_as_it_was(scorer: RewardModel) -> None:
    scorer.network.train()
    before = scorer.network.policy.config._attn_implementation
    scorer.token_logits(*ragged_completions(2))
    assert all(module.training for module in scorer.network.modules())
    assert scorer.network.policy.config._attn_implementation == before


# On disk


@with_and_without_likelihood
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_saved_reward_model_comes_back(scorer: RewardModel, calibrated: bool) -> None:
    untouched = scorer.token_logits(*ragged_completions(5))
    if calibrated:
        calibrate(scorer.network, np.repeat([2.0, -1.0], 4), np.array([True] * 3 + [False] * 5))
    scorer.save()
    loaded = RewardModel.load(scorer.folder, "float32", CPU)
    assert weights_hash(loaded.network) == weights_hash(scorer.network)
    assert (loaded.form, loaded.questions) == (TEMPLATE, scorer.questions)
    loaded.check_tokenizer(scorer.tokenizer)
    before, after = (m.token_logits(*ragged_completions(5)) for m in (scorer, loaded))
    for one, other in zip(before, after, strict=True):
        assert one.tolist() == other.tolist()
    assert (before[1].tolist() != untouched[1].tolist()) == calibrated
    # SHA-256 of "Was this seen?", its first 16 digits
    described = json.loads((scorer.folder / "reward_model.json").read_text())
    assert described == {"prompt": "Q: {question}\nA:", "questions": ["6aaee1c0fe428508"]}


@with_and_without_likelihood
def test_the_head_lies_beside_a_trunk_that_is_a_policy(scorer: RewardModel) -> None:
    scorer.save()
    head = load_file(scorer.folder / "head.safetensors")
    likelihood = {"scale"} if scorer.network.scale is not None else set()
    assert set(head) == {"score.weight", "score.bias"} | likelihood
    trunk = load_policy(str(scorer.folder), "float32", CPU).model
    assert weights_hash(trunk) == weights_hash(scorer.network.policy)


def test_bfloat16_probabilities_are_near(scorer: RewardModel) -> None:
    scorer.save()
    half = RewardModel.load(scorer.folder, "bfloat16", CPU)
    assert half.network.policy.dtype == torch.bfloat16
    assert half.network.score.weight.dtype == torch.float32
    pairs = zip(*(m.final(*ragged_completions(9)) for m in (scorer, half)), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 0.05


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("reward_model.json", None),
        ("reward_model.json", b"{"),
        ("reward_model.json", b"{}"),
        ("reward_model.json", b"[]"),
        ("reward_model.json", b'{"prompt": "Q: {question}", "questions": 3}'),
        ("head.safetensors", None),
        ("head.safetensors", b"torn"),
    ],
)
def test_a_damaged_head_is_refused(scorer: RewardModel, file: str, content: bytes | None) -> None:
    scorer.save()
    (scorer.folder / file).unlink()
    if content is not None:
        (scorer.folder / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"reward_model={scorer.folder} must be")):
        RewardModel.load(scorer.folder, "float32", CPU)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b"torn"),
        ("config.json", None),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_trunk_is_refused(scorer: RewardModel, file: str, content: bytes | None) -> None:
    scorer.save()
    (scorer.folder / file).unlink()
    if content is not None:
        (scorer.folder / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(scorer.folder))):
        RewardModel.load(scorer.folder, "float32", CPU)


@pytest.mark.parametrize(
    ("head", "got"),
    [
        ({"score.weight": torch.zeros(1, 16)}, r"got a head of score\.weight\. "),
        ({"scale": torch.zeros(1)}, r"got a head of scale\. "),
        (
            {"score.weight": torch.zeros(1, 16), "score.bias": torch.zeros(1), "v": torch.ones(1)},
            r"got a head of .*\bv\b",
        ),
        ({"score.weight": torch.zeros(1, 8), "score.bias": torch.zeros(1)}, "size mismatch"),
    ],
)
def test_another_head_is_refused(scorer: RewardModel, head: dict[str, Tensor], got: str) -> None:
    scorer.save()
    save_file(head, scorer.folder / "head.safetensors")
    with pytest.raises(UserError, match=got):
        RewardModel.load(scorer.folder, "float32", CPU)


def test_pickled_weights_are_refused(scorer: RewardModel) -> None:
    scorer.save()
    (scorer.folder / "model.safetensors").unlink()
    torch.save(scorer.network.policy.state_dict(), scorer.folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=re.escape(str(scorer.folder))):
        RewardModel.load(scorer.folder, "float32", CPU)


def test_a_pickled_head_is_refused(scorer: RewardModel) -> None:
    scorer.save()
    saved = load_file(scorer.folder / "head.safetensors")
    head = {name: tensor.clone() for name, tensor in saved.items()}  # it was a view of the file
    torch.save(head, scorer.folder / "head.safetensors")
    with pytest.raises(UserError, match=re.escape(f"reward_model={scorer.folder} must be")):
        RewardModel.load(scorer.folder, "float32", CPU)


def test_a_policy_is_no_reward_model(random_policy: str, scorer: RewardModel) -> None:
    refused = re.escape(f"reward_model={random_policy} must be the folder of a saved reward model")
    with pytest.raises(UserError, match=refused + r".*reward_model\.json"):
        RewardModel.load(Path(random_policy), "float32", CPU)
    scorer.save()
    shutil.copy(scorer.folder / "reward_model.json", random_policy)
    with pytest.raises(UserError, match=refused + r".*head\.safetensors"):
        RewardModel.load(Path(random_policy), "float32", CPU)


def test_another_tokenizer_is_refused(
    scorer: RewardModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "other")
    other = type(tokenizer).from_pretrained(tmp_path / "other")
    scorer.check_tokenizer(other)
    other.add_tokens(["unheard-of"])
    with pytest.raises(UserError, match="must have the policy's tokenizer; got a vocabulary of"):
        scorer.check_tokenizer(other)


def test_questions_it_was_trained_on_are_refused(scorer: RewardModel) -> None:
    scorer.check_not_trained_on(PROBLEMS)
    seen = dataclasses.replace(PROBLEMS[0], id="old", question="Was this seen?")
    with pytest.raises(UserError, match="got 1 of 4 that it was, old among them"):
        scorer.check_not_trained_on([*PROBLEMS, seen])
