"""What PPO learns from: rewards as the settings shape them, running moments, and annotations
against the sampler and against plain passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import mean, pvariance
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.learning.packed import PACKED, PADDED, Layout, PromptGroup
from reasonrl.learning.supervised import micro_batches
from reasonrl.policy_gradient.actor_critic import ActorCritic, Reference
from reasonrl.policy_gradient.experience import (
    Annotations,
    Moments,
    annotate,
    by_question,
    experiences,
    shaped_rewards,
    token_data,
    trainable,
)
from reasonrl.policy_gradient.records import rollouts_record, tokens_record
from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.types import Completion, FinishReason, Prompt, Rollout

Make = Callable[..., LlamaForCausalLM]


@pytest.fixture
def ppo(configure: Callable[..., TrainConfig]) -> PPOConfig:
    config = configure("algorithm=ppo").algorithm
    assert isinstance(config, PPOConfig)
    return replace(
        config, truncation_penalty=0.0, scale_scores=False, score_clip=None, mask_truncated=False
    )


def rollout(
    rewards: Sequence[float],
    finish_reason: FinishReason = "eos",
    *,
    ids: Sequence[int] | None = None,
    prompt: Prompt = Prompt("p", (4, 5)),  # noqa: B008 (it is frozen)
    correct: bool = False,
) -> Rollout:
    token_ids = tuple(ids if ids is not None else range(10, 10 + len(rewards)))
    completion = Completion(
        prompt.problem_id, 0, token_ids, (-0.5,) * len(token_ids), finish_reason, ""
    )
    return Rollout(prompt, completion, "1" if correct else None, correct, tuple(rewards))


def of_ids(prompt: Prompt, *completions: Sequence[int]) -> list[Rollout]:
    return [rollout([0.0] * len(ids), ids=ids, prompt=prompt) for ids in completions]


# Two prompts that read the same are two questions; pad (1) and EOS (0) stand anywhere.
ROLLOUTS = [
    *of_ids(Prompt("a", (5, 6, 7)), (10, 11, 12, 0), (20,), (30, 31)),
    *of_ids(Prompt("b", (5, 6, 7)), (1, 0, 1)),
    *of_ids(Prompt("c", (1,)), (61, 0), (62, 1, 63, 64, 65)),
]
LENGTHS = [4, 1, 2, 3, 2, 5]
QUESTIONS = [
    PromptGroup((5, 6, 7), ((10, 11, 12, 0), (20,), (30, 31))),
    PromptGroup((5, 6, 7), ((1, 0, 1),)),
    PromptGroup((1,), ((61, 0), (62, 1, 63, 64, 65))),
]


# Questions and their tokens


def test_rollouts_of_a_question_stand_together() -> None:
    assert by_question(ROLLOUTS) == QUESTIONS
    assert by_question([]) == []


def test_experiences_cut_what_token_data_joins() -> None:
    """17 tokens, 7 of the first question, then 3, then 7; each field has numbers of its own."""
    names = ["old_logprobs", "ref_logprobs", "old_values", "advantages", "returns"]
    tokens = {name: torch.arange(17.0) + 100 * i for i, name in enumerate(names)}
    cut = experiences(ROLLOUTS, tokens)
    assert [one.group for one in cut] == QUESTIONS
    assert [one.num_tokens for one in cut] == [7, 3, 7]
    # 3 + (4 - 1) + 0 + 1, 3 + 2, 1 + 1 + 4: a completion's last token isn't read
    assert [len(one) for one in cut] == [7, 5, 6]
    assert cut[1].tokens.old_logprobs.tolist() == [7, 8, 9]
    assert cut[2].tokens.returns.tolist() == [410, 411, 412, 413, 414, 415, 416]
    joined = token_data(cut)
    assert list(joined) == names
    assert all(torch.equal(joined[name], tokens[name]) for name in names)
    apart = [part for one in cut for part in one.apart()]
    assert [(part.group.prompt_ids, part.group.completion_ids) for part in apart] == [
        (r.prompt.token_ids, (tuple(r.completion.token_ids),)) for r in ROLLOUTS
    ]
    assert [part.num_tokens for part in apart] == LENGTHS
    assert all(torch.equal(token_data(apart)[name], tokens[name]) for name in names)
    # and of a minibatch in any order
    assert token_data([cut[2], cut[1]])["advantages"].tolist() == [*range(310, 317), 307, 308, 309]


def test_what_is_learnt_from() -> None:
    ended, stopped = rollout([1.0]), rollout([0.0, 0.5], "stop")
    cut_off, empty = rollout([0.0], "length"), rollout([], "stop")
    everything = [ended, empty, cut_off, stopped]
    assert trainable(everything, mask_truncated=False) == [ended, cut_off, stopped]
    assert trainable(everything, mask_truncated=True) == [ended, stopped]


# Rewards


def rows(*expected: list[float]) -> list[Any]:
    return [pytest.approx(row, abs=1e-6) for row in expected]


def test_rewards_stay_as_they_are_without_settings(ppo: PPOConfig) -> None:
    given = [rollout([0.25, 0.0, 1.0]), rollout([0.5], "length"), rollout([-2.0, 3.0], "stop")]
    scores = Moments()
    assert shaped_rewards(given, ppo, scores).tolist() == rows(
        [0.25, 0.0, 1.0], [0.5, 0.0, 0.0], [-2.0, 3.0, 0.0]
    )
    assert scores.count == 3  # they count all the same
    assert scores.mean == pytest.approx(2.75 / 3)  # 1.25, 0.5, 1


def test_a_truncated_and_an_ended_completion_differ_by_the_penalty(ppo: PPOConfig) -> None:
    config = replace(ppo, truncation_penalty=0.3)
    given = [rollout([0.1, 0.2, 0.4], reason) for reason in ("length", "eos", "stop")]
    cut_off, ended, stopped = shaped_rewards([*given, rollout([0.0] * 5)], config, Moments())[:3]
    assert torch.equal(ended, stopped)
    assert ended.tolist() == pytest.approx([0.1, 0.2, 0.4, 0.0, 0.0])
    # all of it on the last token, the third, not on the padding after it
    assert (ended - cut_off).tolist() == pytest.approx([0.0, 0.0, 0.3, 0.0, 0.0])


def test_scores_are_scaled_by_the_deviation_of_all_so_far(ppo: PPOConfig) -> None:
    config, scores = replace(ppo, scale_scores=True), Moments()
    first = shaped_rewards([rollout([0.0, 1.0]), rollout([0.5, 2.5])], config, scores)
    # scores 1 and 3: their standard deviation is 1, and nothing is centred
    assert first.tolist() == rows([0.0, 1.0], [0.5, 2.5])
    second = shaped_rewards([rollout([7.0]), rollout([1.0, 8.0])], config, scores)
    # 1, 3, 7, 9: mean 5, deviations 4, 2, 2, 4, variance (16 + 4 + 4 + 16) / 4 = 10
    assert second.tolist() == rows([7 / 10**0.5, 0.0], [1 / 10**0.5, 8 / 10**0.5])


def test_the_penalty_counts_before_the_scale_and_that_before_the_clip(ppo: PPOConfig) -> None:
    config = replace(ppo, truncation_penalty=2.0, scale_scores=True, score_clip=1.5)
    given = [rollout([1.0, 3.0], "length"), rollout([2.0, 4.0])]
    # scores 4 - 2 = 2 and 6: standard deviation 2. Rewards (0.5, 0.5) and (1, 2), whose scores are
    # 1 and 3; the second is clipped to 1.5: times 1/2
    assert shaped_rewards(given, config, Moments()).tolist() == rows([0.5, 0.5], [0.5, 1.0])


@pytest.mark.parametrize(
    ("rewards", "clipped"),
    [
        ([1.0, 3.0], [0.5, 1.5]),  # score 4 to 2: times 1/2
        ([-1.0, -7.0], [-0.25, -1.75]),  # -8 to -2: times 1/4
        ([6.0, -2.0], [3.0, -1.0]),  # 4 to 2, of either sign
        ([2.0, 0.0], [2.0, 0.0]),  # at the limit
        ([0.5, 1.0], [0.5, 1.0]),  # within it
        ([5.0, -5.0], [5.0, -5.0]),  # score 0, though its rewards are large
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_scores_are_clipped(ppo: PPOConfig, rewards: list[float], clipped: list[float]) -> None:
    config = replace(ppo, score_clip=2.0)
    assert shaped_rewards([rollout(rewards)], config, Moments()).tolist() == rows(clipped)


# Running moments


def test_moments_of_batches_are_those_of_all() -> None:
    batches = [[1000.5, 1001.0], [999.0], [1003.25, 1000.0, 1000.0, 998.5], [1000.0] * 3]
    moments, so_far = Moments(), list[float]()
    for batch in batches:
        moments.update(torch.tensor(batch))
        so_far += batch
        assert moments.count == len(so_far)
        assert moments.mean == pytest.approx(mean(so_far), rel=1e-12)
        assert moments.std == pytest.approx(math.sqrt(pvariance(so_far)), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_the_deviation_is_one_until_something_varies(value: float) -> None:
    moments = Moments()
    assert moments.std == 1.0
    for count in (1, 3, 100):
        moments.update(torch.full((count,), value))
        assert moments.std == 1.0
    moments.update(torch.tensor([value + 1.0]))
    # one of 105 differs by 1: p (1 - p) with p = 1/105
    assert moments.std == pytest.approx(math.sqrt(104) / 105, rel=1e-6)


def test_moments_go_on_from_json() -> None:
    first, second = torch.tensor([0.1, 0.7, 1.3]), torch.tensor([2.0, -1.0])
    straight = Moments()
    straight.update(first)
    resumed = Moments(**json.loads(json.dumps(asdict(straight))))
    assert resumed == straight
    straight.update(second)
    resumed.update(second)
    assert resumed == straight


# Annotations


def actor_critic(model: LlamaForCausalLM) -> ActorCritic:
    """With values that aren't 0."""
    built = ActorCritic(model, 1, detach_value=True)
    torch.manual_seed(5)
    nn.init.normal_(built.value_head.weight)
    return built


@torch.no_grad()
def plain_logits(model: Any, one: Rollout) -> Tensor:
    """From a pass over the prompt and this completion alone."""
    ids = torch.tensor([[*one.prompt.token_ids, *one.completion.token_ids]])
    logits: Tensor = model(input_ids=ids).logits[0, len(one.prompt.token_ids) - 1 : -1]
    return logits


def plain_logprobs(model: Any, one: Rollout, temperature: float) -> list[float]:
    logprobs = (plain_logits(model, one) / temperature).log_softmax(dim=1)
    return [logprobs[t, token].item() for t, token in enumerate(one.completion.token_ids)]


@torch.no_grad()
def plain_values(model: ActorCritic, one: Rollout) -> list[float]:
    """Of a branch that is still the policy's copy."""
    policy: Any = model.policy
    ids = torch.tensor([[*one.prompt.token_ids, *one.completion.token_ids]])
    hidden = policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    values: Tensor = model.value_head(hidden)[0, len(one.prompt.token_ids) - 1 : -1, 0]
    return values.tolist()


@pytest.mark.parametrize(
    ("layout", "max_tokens", "cut"),
    [
        # 5, 6 and 7 tokens to read of each question
        (PACKED, 1, [1, 1, 1]),
        (PACKED, 14, [2, 1]),
        (PACKED, 1000, [3]),
        # 2, 3, 4, 5, 5 and 6 of each completion, with its prompt
        (PADDED, 1, [1, 1, 1, 1, 1, 1]),
        (PADDED, 14, [3, 2, 1]),
        (PADDED, 1000, [6]),
    ],
)
def test_annotations_stand_in_the_order_of_the_rollouts(
    make_model: Make, layout: Layout, max_tokens: int, cut: list[int]
) -> None:
    """Though micro-batches read the shortest first, whatever the layout."""
    model, batches = actor_critic(make_model(initializer_range=0.2)), list[int]()
    model.layout = layout
    model.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    reference = Reference(make_model(seed=1, initializer_range=0.2), layout)
    now = annotate(model, reference, ROLLOUTS, 0.7, max_tokens, torch.float32)
    assert batches == cut
    real = [[True] * n + [False] * (5 - n) for n in LENGTHS]
    assert now.loss_mask.tolist() == real
    for row, (one, length) in enumerate(zip(ROLLOUTS, LENGTHS, strict=True)):
        probabilities = (plain_logits(model.policy, one).double() / 0.7).softmax(dim=1)
        expected = {
            "logprobs": plain_logprobs(model.policy, one, 0.7),
            "ref_logprobs": plain_logprobs(reference.policy, one, 0.7),
            "values": plain_values(model, one),
            "entropy": [-(p * p.log()).sum().item() for p in probabilities],
        }
        for name, numbers in expected.items():
            found = getattr(now, name)
            assert not found.requires_grad
            assert found[row, :length].tolist() == pytest.approx(numbers, abs=1e-5), name
            assert found[row, length:].tolist() == [0.0] * (5 - length), name
    real_entropies = now.entropy[now.loss_mask]
    assert real_entropies.std() > 0.01  # else the order would not show
    assert real_entropies.max() < math.log(268)


@pytest.fixture
def sampled(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """4 completions of each of 3 prompts, from the policy of ``make_model(init…=0.2)`` at 0.7."""
    prompts = [Prompt("a", (40, 41, 42)), Prompt("b", (50,)), Prompt("c", (60, 61, 1, 0, 62))]
    sampler = TransformersEngine(make_model(initializer_range=0.2), tokenizer, batch_size=6)
    completions = sampler.sample(prompts, SamplingParams(4, 0.7, 12), seed=1)
    asked = [prompt for prompt in prompts for _ in range(4)]
    return [
        Rollout(prompt, completion, None, False, (0.0,) * len(completion.token_ids))
        for prompt, completion in zip(asked, completions, strict=True)
    ]


def test_logprobs_are_those_of_the_sampler_and_of_a_plain_pass(
    make_model: Make, sampled: list[Rollout]
) -> None:
    model = actor_critic(make_model(initializer_range=0.2))
    now = annotate(model, Reference(model.frozen_policy()), sampled, 0.7, 60, torch.float32)
    at_one = annotate(model, Reference(model.frozen_policy()), sampled, 1.0, 60, torch.float32)
    for row, one in enumerate(sampled):
        length = len(one.completion.token_ids)
        found = now.logprobs[row, :length].tolist()
        assert found == pytest.approx(one.completion.logprobs, abs=1e-5)
        assert found == pytest.approx(plain_logprobs(model.policy, one, 0.7), abs=1e-5)
        assert now.ref_logprobs[row, :length].tolist() == pytest.approx(found, abs=1e-5)
    assert sum(len(one.completion.token_ids) for one in sampled) == now.loss_mask.sum() > 100
    # at another temperature they are others
    gap = (at_one.logprobs - now.logprobs).abs()[now.loss_mask]
    assert gap.median() > 0.1
    assert (at_one.entropy - now.entropy)[now.loss_mask].min() > 0.01


def test_the_ratio_is_one_before_anything_is_learnt_in_spite_of_dropout(
    make_model: Make, sampled: list[Rollout]
) -> None:
    """Whatever micro-batches annotated the tokens, whatever ones read them for the loss."""
    policy = make_model(initializer_range=0.2, attention_dropout=0.5).train()
    model = actor_critic(policy)
    now = annotate(model, Reference(model.frozen_policy()), sampled, 0.7, 1000, torch.float32)
    names = ("logprobs", "ref_logprobs", "values")
    tokens = {name: getattr(now, name)[now.loss_mask] for name in names}
    fields = {
        "old_logprobs": tokens["logprobs"],
        "ref_logprobs": tokens["ref_logprobs"],
        "old_values": tokens["values"],
        "advantages": tokens["values"],
        "returns": tokens["values"],
    }
    cut = experiences(sampled, fields)
    seen = 0
    for max_tokens in (1, 100):
        for batch in micro_batches(cut[::-1], max_tokens):
            was = token_data(batch)
            reading = model([one.group for one in batch], torch.float32, 0.7)
            for old in (was["old_logprobs"], was["ref_logprobs"]):
                ratio = (reading.logprobs - old).exp()
                torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
            torch.testing.assert_close(reading.values, was["old_values"], rtol=0, atol=1e-5)
            seen += len(reading.logprobs)
    assert seen == 2 * now.loss_mask.sum()


# What is logged


def test_the_record_of_an_iteration_by_hand(ppo: PPOConfig) -> None:
    a, b, c = (Prompt(name, (4,)) for name in "abc")
    rollouts = [
        rollout([0.0, 1.0], prompt=a, correct=True),
        rollout([0.0], "length", prompt=a),
        rollout([0.25, 0.25], prompt=b),
        rollout([0.5], "stop", prompt=b),
        rollout([], "stop", prompt=c),
        rollout([2.0], prompt=c, correct=True),
    ]
    # of the five with tokens; 9 stands where padding is
    now = Annotations(
        logprobs=torch.zeros(5, 2),
        ref_logprobs=torch.zeros(5, 2),
        values=torch.tensor([[1.0, 2.0], [3.0, 9.0], [4.0, 5.0], [6.0, 9.0], [7.0, 9.0]]),
        entropy=torch.tensor([[0.5, 1.5], [2.0, 9.0], [1.0, 1.0], [0.0, 9.0], [1.0, 9.0]]),
        loss_mask=torch.tensor(
            [[True, True], [True, False], [True, True], [True, False], [True, False]]
        ),
    )
    advantages = torch.tensor([[1.0, -1.0], [1.0, 9.0], [-1.0, 1.0], [-1.0, 9.0], [7.0, 9.0]])
    settings = replace(ppo, num_samples_per_prompt=2)
    returns, sampled = now.values + advantages, torch.tensor([[0.5, 0.0]] * 5)
    weights = torch.full((5, 2), 0.5)
    scaled = torch.tensor([[0.0, 1.0]] * 5)
    found = tokens_record(settings, now, sampled, advantages, scaled, returns, weights)
    assert rollouts_record(rollouts, settings) | found == {
        "rollout/correct": pytest.approx(2 / 6),
        "rollout/score": pytest.approx(4 / 6),  # 1, 0, 1/2, 1/2, 0, 2
        "rollout/unparsed": pytest.approx(4 / 6),
        "rollout/undecided": 0.0,
        "rollout/mean_length": pytest.approx(7 / 6),
        "rollout/finish_eos": pytest.approx(3 / 6),
        "rollout/finish_stop": pytest.approx(2 / 6),
        "rollout/finish_length": pytest.approx(1 / 6),
        # squares 1 + 1/4 + 1/4 + 4 = 5.5, /6 = 0.916667, less (4/6)² = 0.444444: 0.472222
        "pg/score_std": pytest.approx(0.472222**0.5, abs=1e-5),
        "pg/unequal_questions": pytest.approx(2 / 3),  # not the second
        "pg/entropy": pytest.approx(1.0),  # (0.5 + 1.5 + 2 + 1 + 1 + 0 + 1) / 7
        "pg/sampler_logprob_gap": pytest.approx(2.5 / 7),  # each completion's first token is off
        "pg/nonzero_advantages": pytest.approx(2 / 7),
        "pg/value_mean": pytest.approx(4.0),  # 1 … 7
        "pg/return_mean": pytest.approx(5.0),  # and the advantages: 4 + 1
        "pg/advantage_mean": pytest.approx(1.0),  # 1 - 1 + 1 - 1 + 1 - 1 + 7 = 7
        # (6 + 49) / 7 - 1 = 48/7
        "pg/advantage_std": pytest.approx((48 / 7) ** 0.5, abs=1e-5),
        # returns 2, 1, 4, 3, 6, 5, 14: squares 4 + 1 + 16 + 9 + 36 + 25 + 196 = 287, /7 = 41,
        # less 25 = 16. Returns less values are the advantages, of variance 48/7: 1 - 3/7
        "pg/explained_variance": pytest.approx(4 / 7, abs=1e-5),
    }
    settings = replace(settings, baseline="group_mean", off_policy_correction="tis")
    other = tokens_record(settings, now, sampled, advantages, scaled, returns, weights)
    assert found.keys() - other.keys() == {"pg/value_mean", "pg/explained_variance"}
    assert other.keys() - found.keys() == {"pg/off_policy_weight"}
    assert other["pg/off_policy_weight"] == 0.5
