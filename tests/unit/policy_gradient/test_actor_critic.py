"""The packed reading against plain passes over one completion each, what the value function's
gradient reaches, and what reference, sampled and learning policy share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.learning.checkpoint import weights_hash
from reasonrl.learning.packed import PADDED, PromptGroup
from reasonrl.learning.supervised import micro_batches
from reasonrl.policy_gradient.actor_critic import (
    ActorCritic,
    ReadReference,
    Reference,
    TokenOutputs,
    check_top_layers,
    freeze_below,
    top_layers,
)
from reasonrl.util.errors import UserError

EOS, PAD = 0, 1
TEMPERATURE = 0.7
# Ragged, of one token too; pad and EOS stand anywhere; the second prompt has one completion.
BATCH = [
    PromptGroup((5, 6, 7, 8, 9), ((10, 11, 12, 13), (20,), (30, 31, 32, 33, 34, 35, EOS))),
    PromptGroup((40,), ((EOS, PAD, PAD, EOS, 50),)),
    PromptGroup((PAD, EOS, 60, PAD), ((61, EOS), (EOS,), (62, PAD, 63))),
]

Make = Callable[..., LlamaForCausalLM]
Build = Callable[..., ActorCritic]

with_and_without_branch = pytest.mark.parametrize("value_layers", [0, 1, 2])


@pytest.fixture
def build(make_model: Make, configure: Callable[..., TrainConfig]) -> Build:
    """Of random weights, so large that attention sees differences; the overrides are of PPO."""

    def of(*overrides: str, model: PreTrainedModel | None = None, seed: int = 0) -> ActorCritic:
        keys = (f"algorithm.{override}" for override in overrides)
        config = configure("algorithm=ppo", *keys).algorithm
        assert isinstance(config, PPOConfig)
        return ActorCritic.build(model or make_model(initializer_range=0.2), config, seed)

    return of


def critic_of(make_model: Make, value_layers: int, detach_value: bool = False) -> ActorCritic:
    """Its value function has learnt: neither the head is zero nor the branch the policy's copy."""
    model = ActorCritic(make_model(initializer_range=0.2), value_layers, detach_value=detach_value)
    torch.manual_seed(7)
    for parameter in model.value_parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def randomise_head(model: ActorCritic) -> None:
    torch.manual_seed(5)
    nn.init.normal_(model.value_head.weight)
    nn.init.normal_(model.value_head.bias)


def randomise_adapters(model: ActorCritic) -> None:
    """Their second factor starts at zero."""
    torch.manual_seed(6)
    for name, parameter in model.policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)


def read(model: ActorCritic, batch: Sequence[PromptGroup]) -> TokenOutputs:
    with torch.no_grad():
        return model(batch, torch.float32, TEMPERATURE, with_entropy=True)


def every_completion(batch: Sequence[PromptGroup]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(one.prompt_ids, ids) for one in batch for ids in one.completion_ids]


def plain(model: Any, batch: Sequence[PromptGroup]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies, from passes over a prompt and one completion each.

    There is no padding and no mask.
    """
    found = []
    for prompt, ids in every_completion(batch):
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        of_all = (logits / TEMPERATURE).log_softmax(dim=1)
        entropies = -(of_all.exp() * of_all).sum(dim=1)
        found.append((of_all.gather(1, torch.tensor(ids)[:, None])[:, 0], entropies))
    logprobs, entropies = zip(*found, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def close_to_plain(reading: TokenOutputs, model: Any, batch: Sequence[PromptGroup]) -> None:
    with torch.no_grad():
        logprobs, entropies = plain(model, batch)
    close(reading.logprobs, logprobs)
    close(reading.entropy, entropies)
    assert logprobs.std() > 0.1  # else the checks above are idle
    assert len(entropies) == 1 or entropies.std() > 0.01


def refer(reference: ReadReference) -> Tensor:
    with torch.no_grad():
        return reference(BATCH, torch.float32, TEMPERATURE)


def plain_values(model: ActorCritic, batch: Sequence[PromptGroup]) -> Tensor:
    """From passes as above, through a whole model whose top layers are the value function's."""
    critic: Any = copy.deepcopy(model.policy.base_model)
    branch: Any = model.branch
    if branch is not None:
        for mine, its in zip(critic.layers[-len(branch.layers) :], branch.layers, strict=True):
            mine.load_state_dict(its.state_dict())
        critic.norm.load_state_dict(branch.norm.state_dict())
    values = []
    for prompt, ids in every_completion(batch):
        hidden = critic(input_ids=torch.tensor([prompt + ids])).last_hidden_state[0]
        values.append(hidden[len(prompt) - 1 : -1] @ model.value_head.weight[0])
    return torch.cat(values) + model.value_head.bias


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of all parameters; zeros where there are none."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    return found


def step(model: ActorCritic) -> None:
    """An optimizer step that changes whatever trains."""
    parameters = [*model.policy_parameters(), *model.value_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    reading = model(BATCH, torch.float32, TEMPERATURE)
    (reading.logprobs.sum() + reading.values.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


# The packed reading


@with_and_without_branch
def test_a_reading_is_that_of_plain_passes(make_model: Make, value_layers: int) -> None:
    model = critic_of(make_model, value_layers)
    reading = read(model, BATCH)
    # the completions of BATCH, one after another: 4 + 1 + 7, 5, 2 + 1 + 3 tokens
    assert [len(numbers) for numbers in reading] == [23, 23, 23]
    close_to_plain(reading, model.policy, BATCH)
    close(refer(Reference(model.frozen_policy())), reading.logprobs)
    with torch.no_grad():
        values = plain_values(model, BATCH)
    close(reading.values, values)
    assert values.std() > 0.1  # else the check above is idle


def test_what_is_not_asked_for_is_not_computed(make_model: Make) -> None:
    model, read_branch = critic_of(make_model, 1), list[Any]()
    assert model.branch is not None
    model.branch.register_forward_pre_hook(lambda *_: read_branch.append(1))
    reading = model(BATCH, torch.float32, TEMPERATURE, with_values=False)
    assert [len(numbers) for numbers in reading] == [23, 0, 0]
    assert not read_branch
    close(reading.logprobs, read(model, BATCH).logprobs)
    assert read_branch


def test_grouped_queries_and_tied_embeddings_are_read_too(make_model: Make) -> None:
    policy = make_model(initializer_range=0.2, num_key_value_heads=1, tie_word_embeddings=True)
    model = ActorCritic(policy, 1, detach_value=True)
    randomise_head(model)
    with torch.no_grad():
        close_to_plain(read(model, BATCH), policy, BATCH)
        close(read(model, BATCH).values, plain_values(model, BATCH))


@pytest.mark.parametrize("special", [EOS, PAD])
def test_pad_and_eos_are_tokens_like_others(make_model: Make, special: int) -> None:
    model = critic_of(make_model, 1)
    alike = [PromptGroup((special,) * 3, ((special,) * 5, (special, 9, special))), BATCH[0]]
    with torch.no_grad():
        close_to_plain(read(model, alike), model.policy, alike)
        close(read(model, alike).values, plain_values(model, alike))


@with_and_without_branch
@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
def test_the_rest_of_a_batch_changes_nothing(
    make_model: Make, value_layers: int, max_tokens: int
) -> None:
    """Whatever the micro-batches and the order, of questions and of a question's completions."""
    model = critic_of(make_model, value_layers)
    of_completion: dict[Any, tuple[Tensor, ...]] = {}

    def collect(batch: Sequence[PromptGroup]) -> None:
        reading, lengths = read(model, batch), [len(ids) for _, ids in every_completion(batch)]
        seen = zip(*(numbers.split(lengths) for numbers in reading), strict=True)
        for completion, now in zip(every_completion(batch), seen, strict=True):
            close(torch.stack(now), torch.stack(of_completion.setdefault(completion, now)))

    collect(BATCH)
    turned = [PromptGroup(one.prompt_ids, one.completion_ids[::-1]) for one in BATCH[::-1]]
    for batch in micro_batches(turned, max_tokens):
        collect(batch)
    assert len(of_completion) == 7


def test_the_micro_batches_above_differ() -> None:
    # tokens read: 5 + 3 + 0 + 6 = 14, 1 + 4 = 5, 4 + 1 + 0 + 2 = 7; of two rows 2 · 7 = 14
    assert [len(one) for one in BATCH] == [14, 5, 7]
    cut = {n: [len(batch) for batch in micro_batches(BATCH, n)] for n in (1, 25, 1000)}
    assert cut == {1: [1, 1, 1], 25: [2, 1], 1000: [3]}


@with_and_without_branch
def test_a_completion_sees_no_other(make_model: Make, value_layers: int) -> None:
    model = critic_of(make_model, value_layers)
    first, *rest = BATCH
    _, *others = first.completion_ids
    changed = [PromptGroup(first.prompt_ids, ((10, 99, 98, 97), *others)), *rest]
    before, after = read(model, BATCH), read(model, changed)

    def differs(name: str) -> list[int]:
        gap = getattr(after, name) - getattr(before, name)
        return (gap.abs() > 1e-6).nonzero()[:, 0].tolist()

    # of the changed completion itself: the three tokens that changed, and what is known before the
    # two after the first of them
    assert differs("logprobs") == [1, 2, 3]
    assert differs("entropy") == [2, 3]
    assert differs("values") == [2, 3]


# Gradients


def weighted(reading: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """Σ w_t (log π_t + H_t + V_t²): every token's gradient is another one."""
    logprobs, entropies, values = reading
    return (weights * (logprobs + entropies + values**2)).sum()


def read_to_learn(model: ActorCritic, batch: Sequence[PromptGroup]) -> TokenOutputs:
    return model(batch, torch.float32, TEMPERATURE, with_entropy=True)


@with_and_without_branch
@pytest.mark.parametrize("detach_value", [False, True])
def test_gradients_are_the_sum_of_those_of_the_completions(
    make_model: Make, value_layers: int, detach_value: bool
) -> None:
    model = critic_of(make_model, value_layers, detach_value)
    weights = torch.linspace(-1, 2, 23)
    weighted(read_to_learn(model, BATCH), weights).backward()
    together = gradients(model)

    singles = [PromptGroup(prompt, (ids,)) for prompt, ids in every_completion(BATCH)]
    parts = weights.split([len(one.completion_ids[0]) for one in singles])
    for one, part in zip(singles, parts, strict=True):
        weighted(read_to_learn(model, [one]), part).backward()
    alone = gradients(model)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-4)
    assert together["policy.model.layers.0.self_attn.q_proj.weight"].abs().max() > 0.01


def test_gradients_are_those_of_plain_passes(make_model: Make) -> None:
    model = critic_of(make_model, 0)
    weights = torch.linspace(-1, 2, 23)
    weighted(read_to_learn(model, BATCH), weights).backward()
    packed = gradients(model)

    policy: Any = model.policy
    start = 0
    for prompt, ids in every_completion(BATCH):
        out = policy(input_ids=torch.tensor([prompt + ids]), output_hidden_states=True)
        values = model.value_head(out.hidden_states[-1])[0, len(prompt) - 1 : -1, 0]
        part = weights[start : start + len(ids)]
        logprobs, entropies = plain(policy, [PromptGroup(prompt, (ids,))])
        weighted((logprobs, entropies, values), part).backward()
        start += len(ids)
    expected = gradients(model)
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value_layers", [0, 1])
def test_one_micro_batch_of_eight_and_eight_of_one_give_equal_gradients(
    make_model: Make, value_layers: int
) -> None:
    model = critic_of(make_model, value_layers)
    questions = [
        PromptGroup(
            tuple(range(2, 3 + i)), tuple(tuple(range(9, 10 + j)) for j in range(i % 3 + 1))
        )
        for i in range(8)
    ]
    num_tokens = sum(len(ids) for _, ids in every_completion(questions))
    found = []
    for max_tokens, count in ((10_000, 1), (1, 8)):
        batches = list(micro_batches(questions, max_tokens))
        assert len(batches) == count
        for batch in batches:
            loss = weighted(read_to_learn(model, batch), torch.ones(()))
            (loss / num_tokens).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)
        assert gradient.any(), name


# Nothing is dropped out


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_readings_are_the_same_twice_in_spite_of_dropout(
    make_model: Make, build: Build, trainable: str
) -> None:
    dropping = make_model(initializer_range=0.2, attention_dropout=0.5).train()
    with torch.no_grad():
        assert not torch.equal(plain(dropping, BATCH)[0], plain(dropping, BATCH)[0])
    model = build(f"trainable={trainable}", "value_layers=1", model=dropping)
    randomise_head(model)
    first, second = read(model, BATCH), read(model, BATCH)
    assert all(map(torch.equal, first, second))
    close(refer(Reference(model.frozen_policy())), first.logprobs)
    assert not model.in_use("float32").training


# The value function


@with_and_without_branch
def test_values_begin_at_exactly_zero(build: Build, value_layers: int) -> None:
    assert read(build(f"value_layers={value_layers}"), BATCH).values.tolist() == [0.0] * 23


@with_and_without_branch
def test_an_untrained_branch_gives_what_the_policy_gives(build: Build, value_layers: int) -> None:
    """head(last hidden state), whatever its number of layers."""
    model = build(f"value_layers={value_layers}")
    randomise_head(model)
    policy: Any = model.policy
    expected = []
    with torch.no_grad():
        for prompt, ids in every_completion(BATCH):
            out = policy(input_ids=torch.tensor([prompt + ids]), output_hidden_states=True)
            values = model.value_head(out.hidden_states[-1])[0, :, 0]
            expected.append(values[len(prompt) - 1 : -1])
    close(read(model, BATCH).values, torch.cat(expected))


@with_and_without_branch
@pytest.mark.parametrize("detach_value", [False, True])
def test_what_the_gradient_of_values_reaches(
    build: Build, value_layers: int, detach_value: bool
) -> None:
    model = build(f"value_layers={value_layers}", f"detach_value={detach_value}")
    randomise_head(model)
    read_to_learn(model, BATCH).values.square().sum().backward()
    found = gradients(model)
    reached = {name for name, gradient in found.items() if gradient.any()}
    of_critic = {name for name in found if not name.startswith("policy.")}
    # all layers below the branch, and the embeddings; without a branch the final norm too
    below = {
        name
        for name in found
        if name.startswith("policy.model.")
        and not any(f"layers.{i}." in name for i in range(2 - value_layers, 2))
        and not (value_layers and name == "policy.model.norm.weight")
    }
    assert reached == of_critic | (set() if detach_value else below)
    # 9 tensors a layer, its norm, and the head's two
    assert len(of_critic) == (9 * value_layers + 1 if value_layers else 0) + 2
    assert len(below) == 1 + 9 * (2 - value_layers) + (not value_layers)


def test_the_value_function_trains_its_own_parameters_alone(build: Build) -> None:
    model = build("value_layers=1", "trainable=top", "trainable_layers=1")
    mine = {id(p) for p in model.value_parameters()}
    assert mine.isdisjoint(id(p) for p in model.policy.parameters())
    assert all(p.requires_grad for p in model.value_parameters())
    assert mine == {id(p) for n, p in model.named_parameters() if not n.startswith("policy.")}


# The reference


@pytest.mark.parametrize("trainable", ["all", "top"])
def test_the_reference_stays_what_the_policy_was(build: Build, trainable: str) -> None:
    model = build(f"trainable={trainable}", "trainable_layers=1", "value_layers=1")
    before = read(model, BATCH).logprobs
    trained = {n for n, p in model.policy.named_parameters() if p.requires_grad}
    reference = Reference(model.frozen_policy())
    assert {n for n, p in model.policy.named_parameters() if p.requires_grad} == trained
    assert trained
    assert not any(p.requires_grad for p in reference.parameters())
    hashed = weights_hash(reference.policy)
    assert hashed == weights_hash(model.policy)
    assert torch.equal(refer(reference), before)
    for _ in range(3):
        step(model)
    assert weights_hash(reference.policy) == hashed
    assert weights_hash(model.policy) != hashed
    assert torch.equal(refer(reference), before)
    assert (read(model, BATCH).logprobs - before).abs().max() > 0.01


def test_without_adapters_a_policy_is_what_it_was(build: Build) -> None:
    model = build("trainable=lora", "value_layers=1")
    before = read(model, BATCH).logprobs
    assert torch.equal(refer(model.without_adapters), before)
    for _ in range(3):
        step(model)
    assert torch.equal(refer(model.without_adapters), before)
    # and with them it is the one that learns, of the same parameters
    assert (read(model, BATCH).logprobs - before).abs().max() > 0.01
    assert len(changed_by_a_step(model)) == 2 * 7 * 2


@pytest.mark.parametrize(
    # 21 tensors: embeddings, head, final norm and 9 of each layer
    ("trainable", "num_shared", "num_own"),
    [("all", 0, 21), ("top", 2 + 9, 9 + 1)],
)
def test_the_reference_shares_what_does_not_train(
    build: Build, trainable: str, num_shared: int, num_own: int
) -> None:
    model = build(f"trainable={trainable}", "trainable_layers=1")
    its = dict(model.frozen_policy().named_parameters())
    shared = {n for n, p in model.policy.named_parameters() if its[n].data_ptr() == p.data_ptr()}
    own = set(its) - shared
    assert (len(shared), len(own)) == (num_shared, num_own)
    assert own == {n for n, p in model.policy.named_parameters() if p.requires_grad}


# What trains


def changed_by_a_step(model: ActorCritic) -> set[str]:
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    step(model)
    return {n for n, p in model.policy.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("tied", [False, True])
def test_top_trains_the_top_layers_and_the_norm(make_model: Make, build: Build, tied: bool) -> None:
    policy = make_model(initializer_range=0.2, num_hidden_layers=3, tie_word_embeddings=tied)
    model = build("trainable=top", "trainable_layers=2", "value_layers=2", model=policy)
    expected = {
        name
        for name, _ in policy.named_parameters()
        if name.startswith(("model.layers.1.", "model.layers.2.", "model.norm."))
    }
    assert len(expected) == 2 * 9 + 1
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == expected
    assert len(model.policy_parameters()) == 19
    assert changed_by_a_step(model) == expected
    close_to_plain(read(model, BATCH), policy, BATCH)


def test_all_trains_everything(build: Build) -> None:
    model = build("trainable=all")
    assert changed_by_a_step(model) == {name for name, _ in model.policy.named_parameters()}


def test_lora_trains_adapters_alone(build: Build) -> None:
    model = build("trainable=lora", "lora_rank=3")
    randomise_adapters(model)  # a factor has no gradient where the other one is zero
    changed = changed_by_a_step(model)
    assert len(changed) == 2 * 7 * 2
    assert all("lora_" in name for name in changed)
    assert len(model.policy_parameters()) == len(changed)
    assert {3} == {min(p.shape) for p in model.policy_parameters()}


def test_adapters_change_nothing_at_first_and_start_as_the_seed_says(build: Build) -> None:
    bare = build()
    hashes = []
    for seed in (0, 0, 1):
        model = build("trainable=lora", seed=seed)
        assert all(map(torch.equal, read(model, BATCH), read(bare, BATCH)))
        hashes.append(weights_hash(model.policy))
    assert hashes[0] == hashes[1] != hashes[2]


def test_adapters_are_read_as_plain_passes_read_them(build: Build) -> None:
    model = build("trainable=lora", "value_layers=1")
    without = read(model, BATCH).logprobs
    randomise_adapters(model)
    close_to_plain(read(model, BATCH), model.policy, BATCH)
    assert (read(model, BATCH).logprobs - without).abs().max() > 0.1


# The policy in use


def test_adapters_are_merged_for_use(build: Build) -> None:
    model = build("trainable=lora", "value_layers=1")
    randomise_adapters(model)
    reading = read(model, BATCH)
    names = [name for name, _ in model.policy.named_parameters()]
    before = weights_hash(model.policy)
    used = model.in_use("float32")
    close_to_plain(reading, used, BATCH)
    assert type(used) is LlamaForCausalLM
    assert not [n for n, m in used.named_modules() if type(m).__module__.startswith("peft")]
    assert set(used.state_dict()) == set(build().policy.state_dict())
    # the one that learns goes on with its adapters, and shares nothing with its copy
    assert weights_hash(model.policy) == before
    assert [name for name, _ in model.policy.named_parameters()] == names
    mine = {p.data_ptr() for p in model.policy.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in used.parameters())
    merged = weights_hash(used)
    assert len(changed_by_a_step(model)) == 2 * 7 * 2
    assert weights_hash(used) == merged


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_policy_in_bfloat16_is_a_copy(build: Build, trainable: str) -> None:
    model = build(f"trainable={trainable}")
    before = weights_hash(model.policy)
    used = model.in_use("bfloat16")
    assert {p.dtype for p in used.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.policy.parameters()} == {torch.float32}
    assert weights_hash(model.policy) == before
    if trainable == "all":
        mine = dict(model.policy.named_parameters())
        assert all(torch.equal(p, mine[n].bfloat16()) for n, p in used.named_parameters())


def test_a_plain_policy_is_used_as_it_is(build: Build) -> None:
    model = build("trainable=all")
    assert model.in_use("float32") is model.policy


def test_bfloat16_readings_are_near(make_model: Make) -> None:
    model = critic_of(make_model, 1)
    full = read(model, BATCH)
    with torch.no_grad():
        half = model(BATCH, torch.bfloat16, TEMPERATURE, with_entropy=True)
    assert {numbers.dtype for numbers in half} == {torch.float32}
    assert 0 < (half.logprobs - full.logprobs).abs().max() < 0.1
    assert 0 < (half.entropy - full.entropy).abs().max() < 0.1
    assert 0 < (half.values - full.values).abs().max() < 0.2


# Models that can't


def test_more_layers_than_the_model_has_are_refused(make_model: Make, build: Build) -> None:
    message = r"algorithm\.{}=3 must be at most the model's number of layers; got 2\. Lower it\."
    with pytest.raises(UserError, match=message.format("value_layers")):
        build("value_layers=3")
    with pytest.raises(UserError, match=message.format("trainable_layers")):
        build("value_layers=1", "trainable=top", "trainable_layers=3")
    with pytest.raises(UserError, match=message.format("value_layers")):
        top_layers(make_model(), 3)
    with pytest.raises(UserError, match=message.format("trainable_layers")):
        freeze_below(make_model(), 3)


def gpt2() -> GPT2LMHeadModel:
    """Its layers aren't called that."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 268, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": EOS}
    return GPT2LMHeadModel(GPT2Config(**sizes, **special, initializer_range=0.2))


NOT_COPIED = (
    r"algorithm\.value_layers must be 0 for a model whose top layers don't work by themselves; got "
    r"model_type={}\. Pass algorithm\.value_layers=0 and algorithm\.trainable=all or lora\."
)


@pytest.mark.parametrize(
    "overrides", [("value_layers=1",), ("value_layers=0", "trainable=top", "trainable_layers=1")]
)
def test_a_model_without_layers_to_copy_is_refused(build: Build, overrides: Sequence[str]) -> None:
    with pytest.raises(UserError, match=NOT_COPIED.format("gpt2")):
        build(*overrides, model=gpt2())


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_model_without_layers_to_copy_learns_without_a_branch(
    build: Build, trainable: str
) -> None:
    model = build("value_layers=0", f"trainable={trainable}", model=gpt2())
    reading = read(model, BATCH)
    close_to_plain(reading, model.policy, BATCH)
    assert reading.values.tolist() == [0.0] * 23


def test_layers_whose_copy_gives_something_else_are_refused(make_model: Make) -> None:
    model = make_model(initializer_range=0.2)
    # what a model does to its embeddings once more when it is called with them
    base: Any = model.base_model

    def scale(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("inputs_embeds") is not None:
            kwargs["inputs_embeds"] = 2 * kwargs["inputs_embeds"]
        return args, kwargs

    base.register_forward_pre_hook(scale, with_kwargs=True)
    with pytest.raises(UserError, match=NOT_COPIED.format("llama")):
        check_top_layers(model, top_layers(model, 1))


@pytest.mark.parametrize("value_layers", [0, 1])
def test_a_model_that_reads_packed_completions_otherwise_reads_each_with_its_prompt(
    build: Build, make_model: Make, value_layers: int
) -> None:
    """It doesn't read masks of True and False."""
    eager = make_model(initializer_range=0.2, attn_implementation="eager")
    model = build(f"value_layers={value_layers}", model=eager)
    randomise_head(model)
    assert model.layout is PADDED
    with torch.no_grad():
        close_to_plain(read(model, BATCH), model.policy, BATCH)
        close(read(model, BATCH).values, plain_values(model, BATCH))
    reference = Reference(model.frozen_policy(), model.layout)
    close(refer(reference), read(model, BATCH).logprobs)


def test_a_model_whose_rows_see_each_other_is_refused(build: Build, make_model: Make) -> None:
    model = make_model(initializer_range=0.2)

    def mix(_: nn.Module, __: object, out: Any) -> None:
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(dim=0)

    model.base_model.register_forward_hook(mix)
    with pytest.raises(UserError, match="must read completions in a batch as it reads each alone"):
        build("value_layers=0", model=model)


@pytest.mark.parametrize("value_layers", [0, 1])
def test_a_model_that_scales_its_logits_is_read_as_it_reads_itself(
    build: Build, value_layers: int
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 70, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    granite = GraniteConfig(
        logits_scaling=4.0, pad_token_id=1, initializer_range=0.6, **sizes, **heads
    )
    model = build(f"value_layers={value_layers}", model=GraniteForCausalLM(granite))
    close_to_plain(read(model, BATCH), model.policy, BATCH)
