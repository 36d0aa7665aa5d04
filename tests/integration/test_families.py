"""Each family of docs/models.md against its own plain forward pass and its own ``generate``.

Its models are small and random, with all kinds of its layers and with windows shorter than what is
read: how they are sampled from, learn and are saved is what differs between families.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reasonrl.config.schema import TrainConfig
from reasonrl.grading.steps import ends_step
from reasonrl.learning.packed import PACKED, PADDED, PromptGroup, find_layout
from reasonrl.learning.supervised import Example, Reader, accumulate_gradients
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.policy import Policy, config_of, context_of, load_policy, save_policy
from reasonrl.policy_gradient.actor_critic import ActorCritic, Reference
from reasonrl.problems.prompts.plain import Plain
from reasonrl.reward_models.model import RewardModel
from reasonrl.reward_models.network import Labelled, build
from reasonrl.sampling import open_engine
from reasonrl.sampling.agreement import find_decoding
from reasonrl.sampling.base import SamplingParams
from reasonrl.sampling.own_cache import by_own_cache
from reasonrl.sampling.shared_prompt import by_segments
from reasonrl.sampling.transformers import TransformersEngine
from reasonrl.types import Completion, Problem, Prompt
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.families import FAMILIES, random_model

CPU = torch.device("cpu")
TEMPERATURE = 0.8
# Prompts of unlike lengths that begin alike, longer than the windows of five tokens.
PROMPTS = [
    Prompt("a", (7, 8, 9, 10, 11, 12, 13)),
    Prompt("b", (7, 8, 9, 10, 14, 15, 16, 17, 18, 19, 20)),
    Prompt("c", (7, 8, 9, 10, 21, 22)),
]
THREE_EACH = [prompt for prompt in PROMPTS for _ in range(3)]
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
DECODINGS = {"segments": by_segments, "own cache": by_own_cache}
LAYOUTS = {"packed rows": PACKED, "padded rows": PADDED}
every_family = pytest.mark.parametrize("name", FAMILIES)


def logprobs_of(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """log π of the tokens after the prompt, at TEMPERATURE, from one plain pass."""
    out: Any = model(torch.tensor([[*prompt, *ids]]), use_cache=False)  # type: ignore[operator]
    every = (out.logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE).log_softmax(dim=-1)
    return every.gather(1, torch.tensor(list(ids))[:, None])[:, 0]


def sample(
    engine: Any, temperature: float = TEMPERATURE, num: int = 3, **how: Any
) -> list[Completion]:
    completions: list[Completion] = engine.sample(
        PROMPTS, SamplingParams(num, temperature, 14, **how), seed=1
    )
    return completions


def groups(completions: Sequence[Completion]) -> list[PromptGroup]:
    return [
        PromptGroup(
            prompt.token_ids,
            tuple(tuple(c.token_ids) for c in completions if c.problem_id == prompt.problem_id),
        )
        for prompt in PROMPTS
    ]


@every_family
def test_sampling_is_that_of_plain_passes(
    name: str, tokenizer: PreTrainedTokenizerBase, configure: Callable[..., TrainConfig]
) -> None:
    model = random_model(name)
    engine = open_engine(Policy(model, tokenizer), configure(), CPU)
    assert isinstance(engine, TransformersEngine)
    assert engine.decoding is DECODINGS[FAMILIES[name].sampler]

    completions = sample(engine)
    assert max(len(c.token_ids) for c in completions) == 14  # two windows and more
    with torch.no_grad():
        for completion, prompt in zip(completions, THREE_EACH, strict=True):
            plain = logprobs_of(model, prompt.token_ids, completion.token_ids)
            torch.testing.assert_close(
                torch.tensor(completion.logprobs), plain, atol=1e-4, rtol=1e-4
            )
    assert len({tuple(c.token_ids) for c in completions}) > 3  # else samples are copies
    alone = TransformersEngine(model, tokenizer, batch_size=1, decoding=engine.decoding)
    assert [c.token_ids for c in sample(alone)] == [c.token_ids for c in completions]

    for completion, prompt in zip(sample(engine, 0, 1), PROMPTS, strict=True):
        ids = torch.tensor([prompt.token_ids])
        out: Any = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14
        )
        assert list(completion.token_ids) == out[0, ids.shape[1] :].tolist()


@every_family
def test_labels_are_read_before_each_step(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model, label = random_model(name), (5, 6, 7)
    newline = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("\n"))
    likely = [*newline, 30, 31, 32]
    model.generation_config.suppress_tokens = sorted({*range(268)} - {*likely})
    engine = TransformersEngine(model, tokenizer, decoding=DECODINGS[FAMILIES[name].sampler])
    completions = sample(engine, step_label=label, step_delimiter="\n")
    labels = 0
    for completion, prompt in zip(completions, THREE_EACH, strict=True):
        read, step, found = [*prompt.token_ids, *label], list[int](), []
        for token in completion.token_ids:
            with torch.no_grad():
                logits = model(torch.tensor([read])).logits[0, -1] / TEMPERATURE  # type: ignore[operator]
            found.append((logits[token] - logits[likely].logsumexp(dim=0)).item())
            read, step = [*read, token], [*step, token]
            if ends_step(tokenizer, step, "\n"):
                read, step, labels = [*read, *label], [], labels + 1
        assert list(completion.logprobs) == pytest.approx(found, abs=1e-4)
    assert labels > 2


@every_family
def test_learning_is_that_of_plain_passes(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """PPO's reading and its gradient, the value function's, and a supervised step."""
    model, family = random_model(name), FAMILIES[name]
    decoding = DECODINGS[family.sampler]
    completions = sample(TransformersEngine(model, tokenizer, decoding=decoding))
    assert find_layout(model) is LAYOUTS[family.learner]
    critic = ActorCritic(model, 0, detach_value=True)
    critic.layout = find_layout(model)
    batch = critic.layout.rows(groups(completions))
    assert len(batch) == (3 if critic.layout is PACKED else 9)

    read = critic(batch, torch.float32, TEMPERATURE, with_entropy=True)
    sampled = torch.cat([torch.tensor(c.logprobs) for c in completions])
    torch.testing.assert_close(read.logprobs, sampled, atol=1e-4, rtol=1e-4)
    reference = Reference(critic.frozen_policy(), critic.layout)
    with torch.no_grad():
        refer = reference(batch, torch.float32, TEMPERATURE)
    torch.testing.assert_close(refer, sampled, atol=1e-4, rtol=1e-4)

    (read.logprobs.exp().sum() + read.entropy.sum()).backward()
    found = gradients(model)
    for one in groups(completions):
        for ids in one.completion_ids:
            out: Any = model(torch.tensor([[*one.prompt_ids, *ids]]), use_cache=False)  # type: ignore[operator]
            every = out.logits[0, len(one.prompt_ids) - 1 : -1] / TEMPERATURE
            every = every.log_softmax(dim=-1)
            own = every.gather(1, torch.tensor(ids)[:, None])
            (own.exp().sum() - (every.exp() * every).sum()).backward()
    close_gradients(found, gradients(model))

    examples = [
        Example(one.prompt_ids, ids) for one in groups(completions) for ids in one.completion_ids
    ]
    loss = accumulate_gradients(Reader(model), examples, 64, torch.float32)
    learnt = gradients(model)
    plain = -torch.cat([at_one(model, e) for e in examples]).mean()
    plain.backward()
    assert loss == pytest.approx(plain.item(), abs=1e-4)
    close_gradients(learnt, gradients(model))


def at_one(model: PreTrainedModel, example: Example) -> Tensor:
    """log π of an example's completion at temperature 1."""
    ids = torch.tensor([example.prompt_ids + example.completion_ids])
    out: Any = model(ids, use_cache=False)  # type: ignore[operator]
    every = out.logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(dim=-1)
    return every.gather(1, torch.tensor(example.completion_ids)[:, None])[:, 0]


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """The gradients there are, which are then gone."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def close_gradients(found: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """Each parameter's, as a vector: the rounding of long sums is a share of the largest entry."""
    assert found.keys() == plain.keys()
    largest = max(gradient.norm() for gradient in plain.values())
    assert largest.isfinite()
    for name, gradient in plain.items():
        gap = (found[name] - gradient).norm()
        assert gap <= 2e-3 * gradient.norm() + 1e-5 * largest, name


@every_family
def test_a_value_function_of_its_top_layer(
    name: str, configure: Callable[..., TrainConfig]
) -> None:
    """Its branch gives what the model's own top layer gives, or is refused before anything is."""
    config: Any = configure("algorithm=ppo", "algorithm.value_layers=1").algorithm
    model = random_model(name)
    if FAMILIES[name].value_layers == "0":
        with pytest.raises(UserError, match=r"Pass algorithm\.value_layers=0 and"):
            ActorCritic.build(model, config, 0)
        return
    critic = ActorCritic.build(model, config, 0)
    critic.value_head.weight.data.normal_()
    prompt, ids = PROMPTS[0].token_ids, (30, 31, 32, 33)
    (values,) = critic([PromptGroup(prompt, (ids,))], torch.float32, 1.0).values[None]
    out: Any = model.base_model(torch.tensor([[*prompt, *ids[:-1]]]), use_cache=False)
    own = critic.value_head(out.last_hidden_state)[0, len(prompt) - 1 :, 0]
    torch.testing.assert_close(values, own, atol=1e-4, rtol=1e-4)


@every_family
def test_a_reward_model_scores_as_its_network_does_alone(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    network = build(random_model(name), "all", likelihood=True, lora_rank=1, seed=0).eval()
    torch.nn.init.normal_(network.score.weight)
    scorer = RewardModel(tmp_path, tokenizer, Plain("Q: {question}"), frozenset(), network)
    assert scorer._shares_prompts == (FAMILIES[name].sampler == "segments")
    problems = [Problem(q, q, "1", "") for q in ("Ana has 7 books.", "How many coins?")] * 2
    answers = [(30, 31, 32, 33, 34, 35, 36), (40, 41), (50,), (60, 61, 62, 63)]
    completions = [
        Completion(problem.id, 0, ids, (0.0,) * len(ids), "length", "")
        for problem, ids in zip(problems, answers, strict=True)
    ]
    scored = scorer.token_logits(completions, problems)
    for logits, problem, ids in zip(scored, problems, answers, strict=True):
        prompt = tuple(tokenizer(f"Q: {problem.question}")["input_ids"])
        with torch.no_grad():
            alone = network([Labelled(prompt, ids, (1.0,) * len(ids))], torch.float32)[0]
        assert logits.tolist() == pytest.approx(alone.tolist(), abs=1e-4, rel=1e-4)


@every_family
def test_it_is_saved_and_loaded_with_lora_merged(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = random_model(name)
    adapted = add_lora(model, 2, 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([PROMPTS[1].token_ids])
    with torch.no_grad():
        before = model(ids, use_cache=False).logits  # type: ignore[operator]
        merged = adapted.merge_and_unload()
        save_policy(Policy(merged, tokenizer), tmp_path / "policy")
        loaded: Any = load_policy(str(tmp_path / "policy"), "float32", CPU).model
        after = loaded(ids, use_cache=False).logits
        untouched = random_model(name)(ids, use_cache=False).logits  # type: ignore[operator]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (after - untouched).abs().max() > 0.1


def test_the_page_has_these_families() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (_, *rows) = re.findall(
        r"^\| (.+?) \| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE
    )
    assert rows == [
        (name, one.model_type, one.sampler, one.learner, one.value_layers)
        for name, one in FAMILIES.items()
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gemma3", "Gemma 3"),
        ("gemma4", "Gemma 4"),
        ("qwen3_5", "Qwen3.5"),
        ("mistral3", "Mistral with a window"),
    ],
)
def test_of_a_model_that_reads_images_the_language_model_is_taken(
    kind: str, name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It is read, saved and loaded as a model of its own."""
    whole, text = CONFIG_MAPPING[kind](), random_model(name).config
    images: dict[str, Any] = {}
    if whole.vision_config is not None:
        vision = whole.vision_config.to_dict()
        images["vision_config"] = vision | {
            key: size for key, size in VISION.items() if key in vision
        }
    config = CONFIG_MAPPING[kind](text_config=text.to_dict(), image_token_id=5, **images)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    path = str(tmp_path / "whole")
    assert (config_of(path).model_type, context_of(path)) == (text.model_type, 512)

    ids = torch.tensor([PROMPTS[0].token_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        policy = load_policy(path, "float32", CPU)
        assert type(policy.model) is type(random_model(name))
        torch.testing.assert_close(policy.model(ids).logits, logits)  # type: ignore[operator]
        assert find_decoding(policy.model).decoding is by_own_cache
        assert find_layout(policy.model) is PADDED
        save_policy(policy, tmp_path / "policy")
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        assert type(again) is type(policy.model)
        torch.testing.assert_close(again(ids).logits, logits)
