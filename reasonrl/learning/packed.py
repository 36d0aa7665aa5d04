"""How a learner lays out prompts and completions for a model to read.

PACKED: a prompt is read once for all of its completions. A row holds a prompt and, one after
another, completions of it. An attention mask lets each completion see only the prompt and itself,
and its positions continue the prompt's, so a model reads each completion as if it were alone there.
Beside the mask the model is told the row's parts, by which most models' attention computes no more
than the mask lets through (``learning.attention``).

PADDED: a row holds a prompt and one completion, and padding on the right, which no real token sees.
So a prompt is read with each of its completions. It serves models that read packed rows otherwise:
windows count the tokens of a row, and a recurrent state goes on from one completion to the next.

Legend: B rows, L tokens of the longest row, H hidden size, V vocabulary, n completion tokens of all
rows, one completion after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reasonrl.learning.attention import Parts
from reasonrl.learning.functional import entropy, padded, token_logprobs
from reasonrl.learning.recompute import in_chunks
from reasonrl.policy.head import check_head, head_logits
from reasonrl.policy.probe import (
    PROMPT_OF_ROW,
    disagreement,
    evaluating,
    plain_logits,
    probe,
    short_windows,
)
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt and completions of it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]  # none of them empty

    def __len__(self) -> int:
        """The number of tokens that are read in a pass."""
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.completion_ids)

    def apart(self) -> list[PromptGroup]:
        """A group for each of the completions."""
        return [PromptGroup(self.prompt_ids, (ids,)) for ids in self.completion_ids]


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as a model reads it.

    Each row holds a prompt, then its completions without their last tokens, which predict nothing.
    """

    inputs: dict[str, Any]  # the arguments of the model's call
    places: Tensor  # (n,), the index in the flattened rows that predicts each completion token
    token_ids: Tensor  # (n,), the completion tokens

    def at_tokens(self, states: Tensor) -> Tensor:
        """Takes from states (B, L, H) those that predict the completion tokens: (n, H)."""
        return states.flatten(0, 1)[self.places]


def pack(batch: Sequence[PromptGroup], device: torch.device) -> Packed:
    """Puts each group into a row, and masks its completions from each other."""
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    part = torch.full_like(ids, -1)  # 0: the prompt; 1, 2, …: a completion; -1: padding
    places: list[Tensor] = []
    for row, group in enumerate(batch):
        end = num_prompt = len(group.prompt_ids)
        ids[row, :end] = torch.tensor(group.prompt_ids)
        positions[row, :end] = torch.arange(end)
        part[row, :end] = 0
        for number, completion_ids in enumerate(group.completion_ids, start=1):
            start, end = end, end + len(completion_ids) - 1
            ids[row, start:end] = torch.tensor(completion_ids[:-1])
            positions[row, start:end] = torch.arange(num_prompt, num_prompt + end - start)
            part[row, start:end] = number
            first = torch.tensor([num_prompt - 1])
            places.append(row * length + torch.cat([first, torch.arange(start, end)]))
    part = part.to(device)
    before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same = part[:, None, :] == part[:, :, None]
    attends = before & (same | (part == 0)[:, None, :])  # (B, L, L)
    token_ids = [i for group in batch for ids in group.completion_ids for i in ids]
    sizes = [(len(one.prompt_ids), [len(i) - 1 for i in one.completion_ids]) for one in batch]
    inputs = {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "attention_mask": attends[:, None],
        "parts": Parts.of(sizes).to(device),
        "use_cache": False,
    }
    return Packed(inputs, torch.cat(places).to(device), torch.tensor(token_ids, device=device))


def pad(batch: Sequence[PromptGroup], device: torch.device) -> Packed:
    """Puts each completion into a row with its prompt."""
    rows = [(group.prompt_ids, ids) for group in batch for ids in group.completion_ids]
    token_ids = padded(prompt + completion[:-1] for prompt, completion in rows)
    starts = [row * token_ids.shape[1] + len(prompt) - 1 for row, (prompt, _) in enumerate(rows)]
    places = [
        torch.arange(start, start + len(completion))
        for start, (_, completion) in zip(starts, rows, strict=True)
    ]
    targets = [i for _, completion in rows for i in completion]
    return Packed(
        {"input_ids": token_ids.to(device), "use_cache": False},
        torch.cat(places).to(device),
        torch.tensor(targets, device=device),
    )


class Separable(Protocol):
    """Something about a prompt's completions that can be taken apart into that about each."""

    def __len__(self) -> int: ...

    def apart(self) -> Sequence[Self]: ...


AnySeparable = TypeVar("AnySeparable", bound=Separable)


@dataclass(frozen=True, slots=True)
class Layout:
    """One of the two ways in which a learner lays out what a model reads."""

    lay_out: Callable[[Sequence[PromptGroup], torch.device], Packed]
    shares_prompts: bool  # whether a row holds all completions of its prompt

    def rows(self, items: Sequence[AnySeparable]) -> Sequence[AnySeparable]:
        """The items as they are cut into micro-batches: one for each row."""
        return items if self.shares_prompts else [part for item in items for part in item.apart()]


PACKED, PADDED = Layout(pack, shares_prompts=True), Layout(pad, shares_prompts=False)


def find_layout(model: PreTrainedModel) -> Layout:
    """The first layout in which a model gives what it gives for each completion alone.

    It is shown on a few tokens, see ``policy.probe``. Raises UserError if there is none, or if the
    model's head can't be read by itself, see ``check_head``.
    """
    check_head(model)
    with torch.no_grad(), short_windows(model.config), evaluating(model):
        plain = torch.cat([logits[:-1] for logits in plain_logits(model)])
        for layout in (PACKED, PADDED):
            if _agrees(model, layout, plain):
                return layout
    raise UserError(
        "model must read completions in a batch as it reads each alone; got "
        f"model_type={model.config.model_type}, which doesn't. Take another model, such as Llama "
        "or Qwen."
    )


def _agrees(model: PreTrainedModel, layout: Layout, plain: Tensor) -> bool:
    prompts, completions = probe(model)
    groups = [
        PromptGroup(
            prompt,
            tuple(ids for i, ids in zip(PROMPT_OF_ROW, completions, strict=True) if i == number),
        )
        for number, prompt in enumerate(prompts)
    ]
    try:
        found = completion_logits(model, groups, layout).float()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # models that don't know masks of this kind raise anything
        return False
    return disagreement(found, plain, model.dtype) is None


def completion_logits(
    model: PreTrainedModel, batch: Sequence[PromptGroup], layout: Layout
) -> Tensor:
    """The logits, (n, V), of the distributions that the completion tokens were drawn from."""
    packed = layout.lay_out(batch, model.device)
    states = model.base_model(**packed.inputs).last_hidden_state
    return head_logits(model, packed.at_tokens(states))


def token_statistics(
    model: PreTrainedModel,
    states: Tensor,
    token_ids: Tensor,
    temperature: float,
    *,
    with_entropy: bool,
    chunked: bool,
) -> tuple[Tensor, Tensor]:
    """The tokens' log-probabilities (n,), and the entropies (n,) of what they were drawn from.

    states: (n, H), the model's last ones, which predict the tokens.
    token_ids: (n,).
    with_entropy: if not, the second tensor is empty.
    chunked: whether logits are computed a few tokens at a time, see ``in_chunks``.
    """

    def statistics(states: Tensor, token_ids: Tensor) -> Tensor:
        logits = head_logits(model, states)
        columns = [token_logprobs(logits, token_ids, temperature)]
        if with_entropy:
            columns.append(entropy(logits, temperature))
        return torch.stack(columns)

    if chunked:
        found = in_chunks(lambda *rows: statistics(*rows).T, states, token_ids).T
    else:
        found = statistics(states, token_ids)
    # They are no views, for what a module in shards returns may be none.
    return found[0].clone(), found[1].clone() if with_entropy else found.new_empty(0)
