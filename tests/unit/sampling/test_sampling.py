"""The transformers engine against plain forward passes and ``generate``, on tiny random models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from reasonrl.grading.stops import Stops
from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.sampling.draw import argmax, draw, uniforms
from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError

PAD, EOS, VOCAB, CONTEXT = 0, 1, 100, 128
# Ids 2.. are pieces of text, several of them parts of the stop strings used below.
PIECES = ["Q", ":", "\n", "\n\n", "\nQ", "A\n", "a", "b", "ab", "Q: "]
PIECES += [f"<{i}>" for i in range(VOCAB - 2 - len(PIECES))]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["[pad]", "[eos]", *PIECES])}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="[pad]"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", eos_token="[eos]")


def ids_of(*pieces: str) -> list[int]:
    return [2 + PIECES.index(piece) for piece in pieces]


def tiny(kind: str = "gqa") -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kind == "mha" else 2,
        "max_position_embeddings": CONTEXT,
        "attention_dropout": 0.5,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    model: PreTrainedModel
    model = (
        Qwen2ForCausalLM(Qwen2Config(**sizes))
        if kind == "qwen2"
        else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    for parameter in model.parameters():  # far from uniform, so that an argmax means something
        if parameter.dim() == 2:
            parameter.data *= 6
    return model.eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny()


def prompts_of(lengths: Sequence[int], *, shared: int = 0) -> list[Prompt]:
    """Random prompts that begin with ``shared`` tokens of one beginning."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(2, VOCAB, (shared,), generator=generator).tolist()
    return [
        Prompt(f"p{i}", (*start, *torch.randint(2, VOCAB, (n,), generator=generator).tolist()))
        for i, n in enumerate(lengths)
    ]


RAGGED = prompts_of([9, 1, 40, 2, 9, 17])
FEW_SHOT = prompts_of([3, 9, 1, 9], shared=40)
IDENTICAL = [dataclasses.replace(prompts_of([30])[0]) for _ in range(3)]


def full_logprobs(
    model: PreTrainedModel, prompt: Prompt, completion: Completion, temperature: float
) -> torch.Tensor:
    """log_softmax(logits / T) of the completion's tokens, from one pass without any cache."""
    ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, len(prompt.token_ids) - 1 : -1]
    every = (logits.float() / temperature).log_softmax(dim=-1)
    return every.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["gqa", "mha", "qwen2"])
@pytest.mark.parametrize("prompts", [RAGGED, FEW_SHOT, IDENTICAL], ids=["ragged", "few", "same"])
def test_greedy_equals_generate(
    kind: str, prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny(kind)
    params = SamplingParams(1, temperature=0, max_new_tokens=45)
    completions = TransformersEngine(model, tokenizer).sample(prompts, params, seed=0)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt.token_ids])
        out = model.generate(ids, do_sample=False, max_new_tokens=45)  # type: ignore[operator]
        assert list(completion.token_ids) == out[0, ids.shape[1] :].tolist()
        plain = full_logprobs(model, prompt, completion, temperature=1.0)
        torch.testing.assert_close(torch.tensor(completion.logprobs), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("prompts", [RAGGED, FEW_SHOT], ids=["ragged", "few"])
def test_logprobs_are_those_of_a_full_pass_at_the_temperature(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    temperature: float,
) -> None:
    params = SamplingParams(5, temperature, max_new_tokens=40)
    completions = TransformersEngine(model, tokenizer).sample(prompts, params, seed=3)
    assert len({len(completion.token_ids) for completion in completions}) > 3  # rows were dropped
    for i, completion in enumerate(completions):
        plain = full_logprobs(model, prompts[i // 5], completion, temperature)
        torch.testing.assert_close(torch.tensor(completion.logprobs), plain, atol=1e-5, rtol=0)


def test_bfloat16_logprobs_are_near_those_of_a_full_pass(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny().bfloat16()
    params = SamplingParams(4, 1.0, max_new_tokens=20)
    completions = TransformersEngine(model, tokenizer).sample(RAGGED, params, seed=0)
    gaps = torch.cat(
        [
            full_logprobs(model, RAGGED[i // 4], completion, 1.0)
            - torch.tensor(completion.logprobs)
            for i, completion in enumerate(completions)
        ]
    )
    # bfloat16 keeps 8 bits: logits of about 10 are off by about 10 / 2^8 = 0.04.
    assert gaps.abs().mean() < 0.1


def test_completions_do_not_depend_on_the_batch_size(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    params = SamplingParams(8, 1.0, max_new_tokens=30, stop=("Q", "ab"))
    per_batch_size = [
        TransformersEngine(model, tokenizer, batch_size=size).sample(RAGGED, params, seed=0)
        for size in (4, 32, 1000)
    ]
    tokens = [[tuple(c.token_ids) for c in completions] for completions in per_batch_size]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len(set(tokens[0])) > 40  # of 48: samples differ from each other


def test_completions_follow_their_prompts_and_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sampler = TransformersEngine(model, tokenizer)
    greedy = SamplingParams(1, 0, max_new_tokens=10)
    forward = sampler.sample(RAGGED, greedy, seed=0)
    backward = sampler.sample(RAGGED[::-1], greedy, seed=0)
    assert [c.token_ids for c in backward] == [c.token_ids for c in forward][::-1]
    completions = sampler.sample(RAGGED[:2], SamplingParams(2, 1.0, 5), seed=0)
    assert [(c.problem_id, c.sample_index) for c in completions] == [
        ("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1),
    ]  # fmt: skip


def test_a_prompt_alone_equals_itself_in_a_padded_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sampler = TransformersEngine(model, tokenizer)
    params = SamplingParams(3, 1.0, max_new_tokens=20)
    alone = sampler.sample(RAGGED[:1], params, seed=0)
    batched = sampler.sample(RAGGED, params, seed=0)[:3]
    for one, other in zip(alone, batched, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_seeds_and_repeats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler, params = TransformersEngine(model, tokenizer), SamplingParams(4, 1.0, 20)
    first = sampler.sample(RAGGED, params, seed=0)
    assert sampler.sample(RAGGED, params, seed=0) == first
    other = [c.token_ids for c in sampler.sample(RAGGED, params, seed=1)]
    assert other != [c.token_ids for c in first]


def test_identical_prompts_get_samples_of_their_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    params = SamplingParams(2, 1.0, max_new_tokens=20)
    completions = TransformersEngine(model, tokenizer).sample(IDENTICAL, params, seed=0)
    assert len({tuple(c.token_ids) for c in completions}) == 6


def test_sampled_frequencies_are_the_softmax(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt, n = RAGGED[0], 4000
    params = SamplingParams(n, temperature=0.7, max_new_tokens=1)
    completions = TransformersEngine(model, tokenizer).sample([prompt], params, seed=0)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCAB)
    with torch.no_grad():
        logits = model(torch.tensor([prompt.token_ids])).logits[0, -1]
    expected = (logits / 0.7).softmax(dim=0)
    error = (expected * (1 - expected) / n).sqrt()  # of a binomial frequency
    assert ((counts / n - expected).abs() <= 4 * error + 1 / n).all()
    assert expected.max() < 0.9  # else the check above is idle


def test_over_many_steps_every_token_comes_as_often_as_its_probabilities_add_up_to(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    params = SamplingParams(60, temperature=1.0, max_new_tokens=25)
    completions = TransformersEngine(model, tokenizer).sample(RAGGED, params, seed=0)
    seen, expected, variance = torch.zeros(3, VOCAB)
    for i, completion in enumerate(completions):
        prompt = RAGGED[i // 60].token_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0]
        chances = logits[len(prompt) - 1 : -1].softmax(dim=-1)
        seen += torch.bincount(torch.tensor(completion.token_ids), minlength=VOCAB)
        expected += chances.sum(dim=0)
        variance += (chances * (1 - chances)).sum(dim=0)
    # Given the tokens before it, each draw is a Bernoulli trial of every id: deviations add up as
    # those of independent trials do, though the number of draws is itself random.
    assert ((seen - expected).abs() <= 4 * variance.sqrt() + 1).all()
    assert seen[EOS] > 50  # among them the token that ends completions


def test_a_draw_is_the_token_whose_interval_holds_the_uniform() -> None:
    # Cumulative: 0.25, 0.75, 1; the token of probability 0 is never drawn, nor is padding.
    logits = torch.tensor([0.25, 0.5, 0.25, 0.0]).log()
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-24])
    ids, logprobs = draw(logits.expand(6, 4), uniform, 1.0)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert logprobs.tolist() == pytest.approx(
        [-1.38629, -1.38629, -0.69315, -0.69315, -1.38629, -1.38629], abs=1e-5
    )


def test_a_draw_at_an_end_of_an_interval_never_takes_a_token_of_probability_0() -> None:
    # Cumulative: 0, 0.5, 1, 1; an interval holds its lower end; rounding may give the uniform 1.
    never = float("-inf")
    logits = torch.tensor([never, 0.0, 0.0, never]).expand(3, 4)
    ids, _ = draw(logits, torch.tensor([0.0, 0.5, 1.0]), 1.0)
    assert ids.tolist() == [1, 2, 2]


def test_a_draw_finds_its_block_and_its_place_there() -> None:
    # 1,000 equal tokens: uniform (i + 0.5) / 1000 lies in the middle of token i's interval.
    i = torch.arange(1000)
    ids, logprobs = draw(torch.zeros(1000, 1000), (i + 0.5) / 1000, 1.0)
    assert torch.equal(ids, i)
    assert logprobs.tolist() == pytest.approx([-6.907755] * 1000, abs=1e-5)  # -ln 1000


def test_a_draw_divides_by_the_temperature() -> None:
    # logits (0, ln 2) at T = 0.5: weights 1 and 4.
    logits = torch.tensor([[0.0, 0.693147]]).expand(2, 2)
    ids, logprobs = draw(logits, torch.tensor([0.19, 0.21]), 0.5)
    assert ids.tolist() == [0, 1]
    assert logprobs.tolist() == pytest.approx([-1.60944, -0.22314], abs=1e-5)  # ln 0.2, ln 0.8
    ids, logprobs = argmax(logits)
    assert ids.tolist() == [1, 1]
    assert logprobs.tolist() == pytest.approx([-0.40547] * 2, abs=1e-5)  # ln(2 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_that_says_so(bad: float) -> None:
    logits = torch.zeros(3, 700)
    logits[1, 600] = bad
    with pytest.raises(UserError, match="the policy's logits must be finite; got NaN or ∞"):
        draw(logits, torch.full((3,), 0.5), 1.0)
    with pytest.raises(UserError, match="the policy's logits must be finite; got NaN or ∞"):
        argmax(logits)


def test_a_probability_of_0_is_no_error() -> None:
    logits = torch.zeros(2, 3).index_fill(1, torch.tensor([0, 2]), -math.inf)
    assert draw(logits, torch.tensor([0.1, 0.9]), 0.7)[0].tolist() == [1, 1]
    assert argmax(logits)[0].tolist() == [1, 1]


def test_logits_in_bfloat16_are_divided_in_float32() -> None:
    logits = torch.tensor([[1.0, 3.140625, -2.0]], dtype=torch.bfloat16)  # exact in bfloat16
    expected = (logits.double() / 0.7).log_softmax(dim=1)
    for token, uniform in ((0, 0.01), (1, 0.9)):
        ids, logprobs = draw(logits, torch.tensor([uniform]), 0.7)
        assert ids.tolist() == [token]
        assert logprobs.item() == pytest.approx(expected[0, token].item(), abs=1e-6)


def test_uniforms_depend_on_all_bits_of_the_seed() -> None:
    table = [uniforms([(0, 0)], 5, seed=seed)[0].tolist() for seed in (7, 7 + 2**32, 7 + 2**62)]
    assert len({tuple(row) for row in table}) == 3


def test_uniforms_depend_on_seed_prompt_sample_and_step_alone() -> None:
    table = uniforms([(0, 0), (0, 1), (1, 0)], 5, seed=7)
    assert torch.equal(uniforms([(1, 0)], 3, seed=7)[0], table[2, :3])
    assert len(set(table.flatten().tolist())) == 15
    assert not torch.equal(uniforms([(0, 0)], 5, seed=8)[0], table[0])


def scripted(script: Sequence[int]) -> PreTrainedModel:
    """A model that after token script[i] says script[i + 1] (so no id may be followed by two)."""
    model = tiny()
    assert len(set(script)) == len(script)
    follows = dict(pairwise(script))

    def say(_module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        del args
        bent = torch.zeros_like(out)
        for row, last in enumerate(model.last_ids):  # type: ignore[arg-type]
            bent[row, -1, follows.get(int(last), VOCAB - 1)] = 50.0
        return bent

    def remember(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        model.last_ids = args[0][:, -1]

    model.get_input_embeddings().register_forward_pre_hook(remember)
    model.get_output_embeddings().register_forward_hook(say)
    return model


def say(
    tokenizer: PreTrainedTokenizerFast, script: Sequence[int], *, stop: tuple[str, ...] = ()
) -> Completion:
    """What is sampled when the model says ``script`` after a one-token prompt."""
    begin = VOCAB - 2
    params = SamplingParams(1, 1.0, max_new_tokens=8, stop=stop)
    sampler = TransformersEngine(scripted([begin, *script]), tokenizer)
    return sampler.sample([Prompt("p", (begin,))], params, seed=0)[0]


@pytest.mark.parametrize(
    ("pieces", "stop", "kept"),
    [
        (["a", "b", "\nQ", ":"], ("\nQ:",), ["a", "b"]),  # spans two tokens
        (["a", "b", "\n\n"], ("\n",), ["a", "b"]),  # inside one token
        (["a", "A\n", "Q: "], ("\nQ:",), ["a"]),  # begins inside a token: "A" goes too
        (["Q", ":"], ("Q:",), []),  # at once
        (["a", "b", "Q", ":"], ("Q:", "ab"), []),  # the first of several
        (["a", "b"], ("b", "ab"), []),  # two that end at once: the one that begins first
    ],
)
def test_a_stop_string_ends_a_completion_and_is_no_part_of_it(
    tokenizer: PreTrainedTokenizerFast, pieces: list[str], stop: tuple[str, ...], kept: list[str]
) -> None:
    completion = say(tokenizer, ids_of(*pieces), stop=stop)
    assert completion.finish_reason == "stop"
    assert list(completion.token_ids) == ids_of(*kept)
    assert completion.text == "".join(kept)
    assert len(completion.logprobs) == len(kept)


def test_only_tokens_that_can_end_a_stop_string_are_looked_at(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    stops = Stops(tokenizer, ("\nQ:",), VOCAB)
    assert stops.may_end.nonzero()[0].tolist() == ids_of(":", "Q: ")
    assert Stops(tokenizer, ("Q",), VOCAB).may_end.nonzero()[0].tolist() == sorted(
        ids_of("Q", "\nQ", "Q: ")
    )


def test_a_stop_string_may_span_the_bytes_of_one_character() -> None:
    # "é" is the bytes C3 A9, which a byte-level tokenizer writes Ã and ©.
    vocabulary = {token: i for i, token in enumerate(["[pad]", "a", "Ã", "©"])}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="[pad]"))
    backend.decoder = decoders.ByteLevel()
    stops = Stops(PreTrainedTokenizerFast(tokenizer_object=backend), ("é",), 4)
    assert stops.may_end[3]
    assert stops.cut([1, 2, 3]) == 1
    assert stops.cut([1, 2]) is None


def test_eos_ends_a_completion_and_belongs_to_it(tokenizer: PreTrainedTokenizerFast) -> None:
    completion = say(tokenizer, [*ids_of("a", "b"), EOS])
    assert completion.finish_reason == "eos"
    assert list(completion.token_ids) == [*ids_of("a", "b"), EOS]
    assert completion.text == "ab"
    assert completion.logprobs == pytest.approx((0.0, 0.0, 0.0), abs=1e-5)


@pytest.mark.parametrize("configured", [None, EOS + 4, [EOS + 4, EOS + 5]])
def test_the_tokenizer_s_eos_ends_a_completion_whatever_the_generation_config_says(
    tokenizer: PreTrainedTokenizerFast, configured: int | list[int] | None
) -> None:
    model = scripted([BEGIN, *ids_of("a", "b"), EOS])
    model.generation_config.eos_token_id = configured
    (completion,) = TransformersEngine(model, tokenizer).sample(
        [Prompt("p", (BEGIN,))], SamplingParams(1, 0, max_new_tokens=8), seed=0
    )
    assert (completion.finish_reason, completion.token_ids[-1]) == ("eos", EOS)


def test_any_token_ends_a_completion_that_the_parameters_name(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As the end of a turn, which neither the config nor the tokenizer may know as EOS."""
    model = scripted([BEGIN, *ids_of("a", "b", "Q"), EOS])
    (end,) = ids_of("Q")
    (completion,) = TransformersEngine(model, tokenizer).sample(
        [Prompt("p", (BEGIN,))], SamplingParams(1, 0, 8, end_tokens=(end,)), seed=0
    )
    assert completion.finish_reason == "eos"
    assert list(completion.token_ids) == ids_of("a", "b", "Q")


def test_length_ends_a_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    completion = say(tokenizer, ids_of("a", "b"))
    assert completion.finish_reason == "length"
    assert list(completion.token_ids) == [*ids_of("a", "b"), *[VOCAB - 1] * 6]


def test_a_sampled_pad_id_is_a_token_like_others(tokenizer: PreTrainedTokenizerFast) -> None:
    completion = say(tokenizer, [*ids_of("a"), PAD, *ids_of("b"), EOS])
    assert list(completion.token_ids) == [*ids_of("a"), PAD, *ids_of("b"), EOS]
    assert completion.text == "ab"


def test_a_prompt_may_hold_pad_and_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [Prompt("x", (PAD, 5, EOS, PAD, 7, PAD)), RAGGED[2]]
    completions = TransformersEngine(model, tokenizer).sample(
        prompts, SamplingParams(1, 0, 10), seed=0
    )
    plain = full_logprobs(model, prompts[0], completions[0], 1.0)
    assert completions[0].logprobs == pytest.approx(plain.tolist(), abs=1e-5)


def test_too_long_a_prompt_fails_before_any_computation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = TransformersEngine(model, tokenizer)
    fits, too_long = prompts_of([CONTEXT - 5, CONTEXT - 4])
    assert len(sampler.sample([fits], SamplingParams(1, 1.0, 5), seed=0)) == 1
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(UserError, match=r"max_new_tokens=5 must be at most 4 .*embeddings=128"):
        sampler.sample([fits, too_long], SamplingParams(1, 1.0, 5), seed=0)
    with pytest.raises(UserError, match="at least one token"):
        sampler.sample([Prompt("empty", ())], SamplingParams(1, 1.0, 5), seed=0)


def test_no_prompts_no_completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert TransformersEngine(model, tokenizer).sample([], SamplingParams(2, 1.0, 5), seed=0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "num_samples_per_prompt=2 must be 1 .* got temperature=0"),
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be"),
        ({"num_samples_per_prompt": 0}, "num_samples_per_prompt=0 must be"),
        ({"stop": ("Q", "")}, "stop=.* must hold no empty text"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SamplingParams(2, 1.0, 5), **change)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    model = tiny().train()
    frozen = model.get_output_embeddings().eval()
    before = model.config._attn_implementation
    modes: list[bool] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: modes.append(model.training))
    sampler = TransformersEngine(model, tokenizer)
    if fails:
        monkeypatch.setattr("reasonrl.sampling.transformers.draw", None)
        with pytest.raises(TypeError):
            sampler.sample(RAGGED, SamplingParams(1, 1.0, 5), seed=0)
    else:
        completions = sampler.sample(RAGGED, SamplingParams(1, 1.0, 5), seed=0)
        plain = full_logprobs(tiny(), RAGGED[0], completions[0], 1.0)
        assert completions[0].logprobs == pytest.approx(plain.tolist(), abs=1e-5)
    assert modes
    assert not any(modes)  # dropout was off
    assert model.config._attn_implementation == before
    assert all(module.training for module in model.modules() if module is not frozen)
    assert not frozen.training
    out = model(torch.tensor([[3, 4]])).logits
    assert out.requires_grad


def test_progress_counts_every_completion_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    finished: list[int] = []
    params = SamplingParams(7, 1.0, max_new_tokens=20, stop=("a", "Q"))
    TransformersEngine(model, tokenizer, batch_size=16).sample(
        RAGGED, params, seed=0, on_progress=finished.append
    )
    assert sum(finished) == 42  # 6 prompts × 7 samples
    assert len(finished) > 3
    assert min(finished) > 0


def test_a_prompt_is_read_once_for_all_of_its_samples(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny()
    shapes: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: shapes.append(tuple(args[0].shape))
    )
    # 40 shared tokens once; then of each prompt what is left but for the last token, padded to
    # 9 − 1 = 8; then the last tokens; then, at each step, one token for each of 4 × 6 rows.
    TransformersEngine(model, tokenizer).sample(FEW_SHOT, SamplingParams(6, 1.0, 3), seed=0)
    assert shapes[:4] == [(1, 40), (4, 8), (4, 1), (24, 1)]


# Acting step by step: a label before each step.

BEGIN = VOCAB - 2  # a token that is none of PIECES' lines, to ask with
LABELS = {"none": (), "token": (VOCAB - 3,), "text": (VOCAB - 3, 20, 21)}


def of_lines() -> PreTrainedModel:
    """A model that writes short lines and ends now and then."""
    model = tiny()
    likelier = torch.zeros(VOCAB)
    likelier[[EOS, *ids_of("\n", "\n\n", "\nQ", "A\n", "a")]] = torch.tensor(
        [3.0, -2.0, 2.0, 5.0, 3.0, 2.0]
    )
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out + likelier)
    return model


def lines_closed(text: str) -> int:
    """How many lines of a text that aren't blank have their newline, character by character."""
    closed, blank = 0, True
    for character in text:
        if character == "\n":
            closed += not blank
            blank = True
        elif not character.isspace():
            blank = False
    return closed


def plain_loop(
    model: PreTrainedModel, prompt: Prompt, params: SamplingParams, row: tuple[int, int], seed: int
) -> tuple[list[int], list[float], list[bool]]:
    """Prompt, label, sample to the end of a line, label, go on; every token from a whole pass.

    Returns the sampled ids, their logprobs, and of all that came after the first label, whether
    it was sampled.
    """
    (uniform,) = uniforms([row], params.max_new_tokens, seed=seed).double()
    read = [*prompt.token_ids, *params.step_label]
    ids: list[int] = []
    logprobs: list[float] = []
    was_sampled: list[bool] = []
    line = ""
    while len(ids) < params.max_new_tokens and EOS not in ids:
        with torch.no_grad():
            logits = model(torch.tensor([read]), use_cache=False).logits[0, -1].double()
        if params.temperature == 0:
            token, every = int(logits.argmax()), logits.log_softmax(dim=0)
        else:
            every = (logits / params.temperature).log_softmax(dim=0)
            token = int((every.exp().cumsum(dim=0) <= uniform[len(ids)]).sum())
        ids.append(token)
        logprobs.append(float(every[token]))
        read.append(token)
        was_sampled.append(True)
        line += ["", "", *PIECES][token]
        if lines_closed(line):
            line = ""
            read += params.step_label
            was_sampled += [False] * len(params.step_label)
    while not was_sampled[-1]:  # a label with nothing after it
        was_sampled.pop()
    return ids, logprobs, was_sampled


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("prompts", [RAGGED, FEW_SHOT], ids=["ragged", "few"])
def test_acting_step_by_step_equals_a_loop_without_any_cache(
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    label: tuple[int, ...],
    temperature: float,
) -> None:
    model, samples = of_lines(), 3 if temperature else 1
    params = SamplingParams(
        samples, temperature, max_new_tokens=16, step_label=label, step_delimiter="\n"
    )
    rows = [(i, k) for i in range(len(prompts)) for k in range(samples)]
    expected = [plain_loop(model, prompts[i], params, (i, k), seed=5) for i, k in rows]

    kinds = [was_sampled for *_, was_sampled in expected]
    if label:  # else the comparison would be idle
        assert max(was_sampled.count(False) for was_sampled in kinds) >= 3 * len(label)
    if label and temperature:  # some row finishes while another is reading a label
        ends = {len(was_sampled) - 1 for was_sampled in kinds}
        assert any(
            not was_sampled[t] for was_sampled in kinds for t in ends if t < len(was_sampled)
        )

    for batch_size in (1, 3, 512):
        sampler = TransformersEngine(model, tokenizer, batch_size=batch_size)
        completions = sampler.sample(prompts, params, seed=5)
        for (i, k), (ids, logprobs, _), completion in zip(rows, expected, completions, strict=True):
            assert (completion.problem_id, completion.sample_index) == (prompts[i].problem_id, k)
            assert list(completion.token_ids) == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert completion.finish_reason == ("eos" if ids[-1] == EOS else "length")
            assert completion.text == "".join(["", "", *PIECES][token] for token in ids)


@pytest.mark.parametrize("label", [(), LABELS["text"]], ids=["none", "text"])
def test_progress_counts_every_completion_once_with_labels_and_without(
    tokenizer: PreTrainedTokenizerFast, label: tuple[int, ...]
) -> None:
    finished: list[int] = []
    params = SamplingParams(
        5, 1.0, max_new_tokens=12, stop=("Q:",), step_label=label, step_delimiter="\n"
    )
    TransformersEngine(of_lines(), tokenizer, batch_size=10).sample(
        RAGGED, params, seed=0, on_progress=finished.append
    )
    assert sum(finished) == 30  # 6 prompts × 5 samples
    assert len(finished) > 3
    assert min(finished) > 0


def act(
    tokenizer: PreTrainedTokenizerFast,
    script: Sequence[int],
    label: tuple[int, ...],
    *,
    prompt: tuple[int, ...] = (BEGIN,),
    max_new_tokens: int = 10,
    stop: tuple[str, ...] = (),
    delimiter: str = "\n",
) -> tuple[Completion, list[int]]:
    """What is sampled when the model says ``script``, then 'b', and what it read after its prompt.

    The script holds no token of the label.
    """
    model, read = tiny(), list[int]()
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: read.extend(args[0].flatten().tolist())
    )

    def say(_module: torch.nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        said = sum(token not in label for token in read[len(prompt) :])
        bent = torch.zeros_like(out)
        bent[..., [*script, *ids_of("b") * CONTEXT][said]] = 50.0
        return bent

    model.get_output_embeddings().register_forward_hook(say)
    params = SamplingParams(1, 1.0, max_new_tokens, stop, label, delimiter)
    (completion,) = TransformersEngine(model, tokenizer).sample(
        [Prompt("p", prompt)], params, seed=0
    )
    assert tuple(read[: len(prompt)]) == prompt
    return completion, read[len(prompt) :]


@pytest.mark.parametrize(
    ("said", "read"),  # L: the label. Nothing is read after what ends a completion, EOS here.
    [
        (["a", "\n", "b"], ["L", "a", "\n", "L", "b"]),
        (["a", "b", "\n", "b"], ["L", "a", "b", "\n", "L", "b"]),
        (["a", "\n", "b", "\n", "a"], ["L", "a", "\n", "L", "b", "\n", "L", "a"]),
        (["a"], ["L", "a"]),
        ([], ["L"]),
        (["a", "\n"], ["L", "a", "\n", "L"]),
        (["\n", "\n", "a", "\n", "b"], ["L", "\n", "\n", "a", "\n", "L", "b"]),
        (["\n\n", "a", "\n\n", "b"], ["L", "\n\n", "a", "\n\n", "L", "b"]),
        (["a", "\n", "\n", "b"], ["L", "a", "\n", "L", "\n", "b"]),
        (["a", "\n", "\n", "b", "\n", "a"], ["L", "a", "\n", "L", "\n", "b", "\n", "L", "a"]),
        (["A\n", "b", "A\n"], ["L", "A\n", "L", "b", "A\n", "L"]),
        # A newline with text after it: the label comes after the token.
        (["a", "\nQ", "b", "\n"], ["L", "a", "\nQ", "L", "b", "\n", "L"]),
        (["a", "\nQ", "\n", "b"], ["L", "a", "\nQ", "L", "\n", "b"]),
        (["\nQ", "b", "\n"], ["L", "\nQ", "b", "\n", "L"]),
    ],
)
@pytest.mark.parametrize("label", [LABELS["token"], LABELS["text"]], ids=["token", "text"])
def test_a_label_is_read_before_each_step_and_is_no_part_of_the_completion(
    tokenizer: PreTrainedTokenizerFast, said: list[str], read: list[str], label: tuple[int, ...]
) -> None:
    completion, ids_read = act(tokenizer, [*ids_of(*said), EOS], label)
    assert ids_read == [i for p in read for i in (label if p == "L" else ids_of(p))]
    assert list(completion.token_ids) == [*ids_of(*said), EOS]
    assert completion.text == "".join(said)
    assert completion.finish_reason == "eos"
    # 50 against 99 zeros: each is as good as certain.
    assert completion.logprobs == pytest.approx((0.0,) * (len(said) + 1), abs=1e-5)


@pytest.mark.parametrize(
    ("said", "stop", "kept", "read"),
    [
        (["a", "\n"], "\n", ["a"], ["L", "a"]),  # the newline ends the completion, not a step
        (["a", "\n", "\n"], "\n\n", ["a"], ["L", "a", "\n", "L"]),
        (["a", "\n", "Q", ":"], "\nQ:", ["a"], ["L", "a", "\n", "L", "Q"]),  # across a label
        (["a", "\n", "b", "Q: "], "Q:", ["a", "\n", "b"], ["L", "a", "\n", "L", "b"]),
        (["Q", ":"], "Q:", [], ["L", "Q"]),
    ],
)
def test_a_stop_string_ends_a_completion_of_steps(
    tokenizer: PreTrainedTokenizerFast,
    said: list[str],
    stop: str,
    kept: list[str],
    read: list[str],
) -> None:
    label = LABELS["token"]
    completion, ids_read = act(tokenizer, ids_of(*said), label, stop=(stop,))
    assert ids_read == [i for p in read for i in (label if p == "L" else ids_of(p))]
    assert completion.finish_reason == "stop"
    assert list(completion.token_ids) == ids_of(*kept)
    assert completion.text == "".join(kept)
    assert len(completion.logprobs) == len(kept)


def test_a_step_ends_where_the_grader_says(tokenizer: PreTrainedTokenizerFast) -> None:
    label = LABELS["token"]
    said = ids_of("a", "\n", "Q", ":", "b")
    completion, read = act(tokenizer, [*said, EOS], label, delimiter="Q:")
    assert completion.text == "a\nQ:b"
    assert read == [*label, *said[:4], *label, said[4]]


def test_a_label_without_a_delimiter_of_steps_is_refused() -> None:
    said = r"step_delimiter must say what ends a step; got step_label=\(97,\). Take the grader's."
    with pytest.raises(UserError, match=said):
        SamplingParams(1, 1.0, 5, step_label=(97,))


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_max_new_tokens_counts_sampled_tokens_alone(
    tokenizer: PreTrainedTokenizerFast, label: tuple[int, ...]
) -> None:
    completion, _ = act(tokenizer, ids_of("a", "A\n") * 5, label, max_new_tokens=7)
    assert completion.finish_reason == "length"
    assert list(completion.token_ids) == ids_of("a", "A\n", "a", "A\n", "a", "A\n", "a")
    assert len(completion.logprobs) == 7


def test_labels_that_eat_the_room_cut_a_completion_where_the_context_ends(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # The context is 128: 119 of the prompt, then, in the 9 places left for a label and 8 tokens,
    # L a \n L a \n L a \n. A fourth label has no place.
    prompt = (BEGIN,) * 119
    script = ids_of("a", "\n") * 4
    completion, read = act(tokenizer, script, LABELS["token"], prompt=prompt, max_new_tokens=8)
    assert completion.finish_reason == "length"
    assert list(completion.token_ids) == ids_of("a", "\n", "a", "\n", "a", "\n")
    assert len(completion.logprobs) == 6
    assert len(prompt) + len(read) + 1 == CONTEXT  # the last token is not read


def test_a_step_that_reaches_the_last_place_of_the_context_ends_there(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # L a \n L a a a a a are the 9 places that the prompt leaves; an eighth token has none.
    script = ids_of("a", "\n", *"aaaaaaa")
    completion, _ = act(tokenizer, script, LABELS["token"], prompt=(BEGIN,) * 119, max_new_tokens=8)
    assert list(completion.token_ids) == script[:7]
    assert completion.finish_reason == "length"


def test_what_ends_in_the_last_place_of_the_context_is_not_cut(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = (BEGIN,) * 119  # and L a \n L a \n L a [eos]
    script = [*ids_of("a", "\n", "a", "\n", "a"), EOS]
    completion, _ = act(tokenizer, script, LABELS["token"], prompt=prompt, max_new_tokens=8)
    assert completion.finish_reason == "eos"
    assert list(completion.token_ids) == script


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_where_one_label_fits_a_single_step_is_given_all_its_tokens(
    tokenizer: PreTrainedTokenizerFast, label: tuple[int, ...]
) -> None:
    prompt = (BEGIN,) * (CONTEXT - len(label) - 8)
    completion, _ = act(tokenizer, ids_of("a") * 8, label, prompt=prompt, max_new_tokens=8)
    assert list(completion.token_ids) == ids_of("a") * 8
    assert completion.finish_reason == "length"


def test_nothing_is_read_past_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    """Not even by rows that are finished: a model may have learnt an embedding per position."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=40, n_embd=16, n_layer=1, n_head=2,
                   bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD)
    ).eval()  # fmt: skip
    certain = torch.zeros(VOCAB)
    certain[ids_of("A\n")] = 50.0  # every token ends a step
    model.lm_head.register_forward_hook(lambda _module, _args, out: 0 * out + certain)
    # The long one ends at the context's end, and waits for more to end before it is dropped.
    prompts = [Prompt("long", (BEGIN,) * 22), *(Prompt(f"p{i}", (BEGIN,)) for i in range(30))]
    params = SamplingParams(1, 0, max_new_tokens=10, step_label=LABELS["text"], step_delimiter="\n")
    completions = TransformersEngine(model, tokenizer).sample(prompts, params, seed=0)
    # 22 of the prompt, and LLL A\n four times, are 38: the next label has no place.
    assert [len(c.token_ids) for c in completions] == [4, *[10] * 30]


def test_a_prompt_that_leaves_no_room_for_one_label_fails_before_any_computation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = TransformersEngine(model, tokenizer)
    fits, too_long = prompts_of([CONTEXT - 8, CONTEXT - 7])
    params = SamplingParams(
        1, 1.0, 5, step_label=LABELS["text"], step_delimiter="\n"
    )  # 120 + 3 + 5 = 128
    assert len(sampler.sample([fits], params, seed=0)) == 1
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(
        UserError, match=r"max_new_tokens=5 must be at most 4 after the 121 .*embeddings=128"
    ):
        sampler.sample([fits, too_long], params, seed=0)


# Tokens that a policy suppresses.


def of_weights(suppressed: list[int] | None, **weights: float) -> PreTrainedModel:
    """A model whose softmax is in proportion to the pieces' weights, whatever it reads."""
    model = tiny()
    bent = torch.full((VOCAB,), -50.0)
    bent[ids_of(*weights)] = torch.tensor(list(weights.values())).log()
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: 0 * out + bent)
    model.generation_config.suppress_tokens = suppressed
    return model


def logprobs_of_pieces(completions: Sequence[Completion]) -> dict[str, float]:
    return {c.text: c.logprobs[0] for c in completions}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        # Left are weights 1 and 3: ln(1/4) and ln(3/4).
        (1.0, {"a": -1.38629, "b": -0.28768}),
        # At T = 0.5, 1 and 9: ln(1/10) and ln(9/10).
        (0.5, {"a": -2.30259, "b": -0.10536}),
        (0.0, {"b": -0.28768}),
    ],
)
def test_a_suppressed_token_is_never_sampled_and_the_others_share_its_probability(
    tokenizer: PreTrainedTokenizerFast, temperature: float, expected: dict[str, float]
) -> None:
    model = of_weights(ids_of("ab", "Q"), a=1.0, b=3.0, ab=1e6)
    params = SamplingParams(200 if temperature else 1, temperature, max_new_tokens=1)
    completions = TransformersEngine(model, tokenizer).sample(RAGGED[:1], params, seed=0)
    assert logprobs_of_pieces(completions) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("suppressed", [None, []])
def test_nothing_is_suppressed_unless_the_policy_says_so(
    tokenizer: PreTrainedTokenizerFast, suppressed: list[int] | None
) -> None:
    # ln(1/8), ln(3/8), ln(4/8)
    model = of_weights(suppressed, a=1.0, b=3.0, ab=4.0)
    sampler = TransformersEngine(model, tokenizer)
    sampled = sampler.sample(RAGGED[:1], SamplingParams(200, 1.0, 1), seed=0)
    assert logprobs_of_pieces(sampled) == pytest.approx(
        {"a": -2.07944, "b": -0.98083, "ab": -0.69315}, abs=1e-5
    )
    greedy = sampler.sample(RAGGED[:1], SamplingParams(1, 0, 1), seed=0)
    assert logprobs_of_pieces(greedy) == pytest.approx({"ab": -0.69315}, abs=1e-5)


def test_a_suppressed_token_may_be_read(tokenizer: PreTrainedTokenizerFast) -> None:
    quiet, loud = of_lines(), of_lines()
    likelier = torch.zeros(VOCAB)
    likelier[list(LABELS["text"])] = 50.0
    loud.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out + likelier)
    params = SamplingParams(
        4, 1.0, max_new_tokens=12, step_label=LABELS["text"], step_delimiter="\n"
    )
    sampled = []
    for model in (quiet, loud):
        model.generation_config.suppress_tokens = list(LABELS["text"])
        sampled.append(TransformersEngine(model, tokenizer).sample(RAGGED, params, seed=0))
    assert sampled[0] == sampled[1]
    assert not {i for c in sampled[1] for i in c.token_ids} & {*LABELS["text"]}
