"""The transformers engine against plain forward passes and ``generate``, on tiny random models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from reasonrl.errors import UserError
from reasonrl.sampling import SamplingParams, TransformersSampler
from reasonrl.sampling.draw import argmax, draw, uniforms
from reasonrl.sampling.stops import Stops
from reasonrl.types import Completion, Prompt

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
    completions = TransformersSampler(model, tokenizer).sample(prompts, params, seed=0)
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
    completions = TransformersSampler(model, tokenizer).sample(prompts, params, seed=3)
    assert len({len(completion.token_ids) for completion in completions}) > 3  # rows were dropped
    for i, completion in enumerate(completions):
        plain = full_logprobs(model, prompts[i // 5], completion, temperature)
        torch.testing.assert_close(torch.tensor(completion.logprobs), plain, atol=1e-5, rtol=0)


def test_bfloat16_logprobs_are_near_those_of_a_full_pass(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny().bfloat16()
    params = SamplingParams(4, 1.0, max_new_tokens=20)
    completions = TransformersSampler(model, tokenizer).sample(RAGGED, params, seed=0)
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
        TransformersSampler(model, tokenizer, batch_size=size).sample(RAGGED, params, seed=0)
        for size in (4, 32, 1000)
    ]
    tokens = [[c.token_ids for c in completions] for completions in per_batch_size]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len(set(tokens[0])) > 40  # of 48: samples differ from each other


def test_completions_follow_their_prompts_and_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sampler = TransformersSampler(model, tokenizer)
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
    sampler = TransformersSampler(model, tokenizer)
    params = SamplingParams(3, 1.0, max_new_tokens=20)
    alone = sampler.sample(RAGGED[:1], params, seed=0)
    batched = sampler.sample(RAGGED, params, seed=0)[:3]
    for one, other in zip(alone, batched, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_seeds_and_repeats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler, params = TransformersSampler(model, tokenizer), SamplingParams(4, 1.0, 20)
    first = sampler.sample(RAGGED, params, seed=0)
    assert sampler.sample(RAGGED, params, seed=0) == first
    other = [c.token_ids for c in sampler.sample(RAGGED, params, seed=1)]
    assert other != [c.token_ids for c in first]


def test_identical_prompts_get_samples_of_their_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    params = SamplingParams(2, 1.0, max_new_tokens=20)
    completions = TransformersSampler(model, tokenizer).sample(IDENTICAL, params, seed=0)
    assert len({c.token_ids for c in completions}) == 6


def test_sampled_frequencies_are_the_softmax(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt, n = RAGGED[0], 4000
    params = SamplingParams(n, temperature=0.7, max_new_tokens=1)
    completions = TransformersSampler(model, tokenizer).sample([prompt], params, seed=0)
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
    completions = TransformersSampler(model, tokenizer).sample(RAGGED, params, seed=0)
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
    sampler = TransformersSampler(scripted([begin, *script]), tokenizer)
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
    completions = TransformersSampler(model, tokenizer).sample(
        prompts, SamplingParams(1, 0, 10), seed=0
    )
    plain = full_logprobs(model, prompts[0], completions[0], 1.0)
    assert completions[0].logprobs == pytest.approx(plain.tolist(), abs=1e-5)


def test_too_long_a_prompt_fails_before_any_computation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = TransformersSampler(model, tokenizer)
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
    assert TransformersSampler(model, tokenizer).sample([], SamplingParams(2, 1.0, 5), seed=0) == []


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


def test_sliding_windows_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("qwen2")
    model.model.layers[0].self_attn.sliding_window = 4
    with pytest.raises(UserError, match="model=qwen2 must use plain causal attention"):
        TransformersSampler(model, tokenizer).sample(RAGGED, SamplingParams(1, 0, 5), seed=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    model = tiny().train()
    frozen = model.get_output_embeddings().eval()
    before = model.config._attn_implementation
    modes: list[bool] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: modes.append(model.training))
    sampler = TransformersSampler(model, tokenizer)
    if fails:
        monkeypatch.setattr("reasonrl.sampling.transformers_engine.draw", None)
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
    TransformersSampler(model, tokenizer, batch_size=16).sample(
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
    TransformersSampler(model, tokenizer).sample(FEW_SHOT, SamplingParams(6, 1.0, 3), seed=0)
    assert shapes[:4] == [(1, 40), (4, 8), (4, 1), (24, 1)]
