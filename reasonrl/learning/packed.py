"""Several completions of a prompt in one pass: the prompt is read once, whatever their number.

A packed row holds a prompt and, one after another, completions of it. An attention mask lets each
completion see only the prompt and itself, and its positions continue the prompt's, so a model reads
each completion as if it stood there alone.

Legend: B rows, L tokens of the longest row, H hidden size, V vocabulary, n completion tokens of all
rows, one completion after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reasonrl.learning.functional import entropy, token_logprobs
from reasonrl.learning.recompute import in_chunks
from reasonrl.policy.head import check_head, head_logits
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt and completions of it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]  # none of them empty

    def __len__(self) -> int:
        """The number of tokens that are read in a pass."""
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.completion_ids)


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
    before = torch.ones(length, length, dtype=torch.bool).tril()
    same = part[:, None, :] == part[:, :, None]
    attends = before & (same | (part == 0)[:, None, :])  # (B, L, L)
    token_ids = [i for group in batch for ids in group.completion_ids for i in ids]
    inputs = {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "attention_mask": attends[:, None].to(device),
        "use_cache": False,
    }
    return Packed(inputs, torch.cat(places).to(device), torch.tensor(token_ids, device=device))


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Raises UserError for a model that ignores the masks or positions of a packed row.

    The same goes for one whose head can't be read by itself, see ``check_head``.
    """
    check_head(model)
    prompt, completions = (0, 1, 2, 3), ((4, 5, 6), (5, 4))
    packed = completion_logits(model, [PromptGroup(prompt, completions)])
    for completion in completions:
        ids = torch.tensor([prompt + completion[:-1]], device=model.device)
        plain = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
        together, packed = packed.split([len(completion), len(packed) - len(completion)])
        if not torch.allclose(together, plain, atol=1e-3):
            raise UserError(
                "model must read several completions of a prompt in one pass as it reads each "
                f"alone; got model_type={model.config.model_type}, which doesn't. Take a model "
                "with plain causal attention, such as Llama or Qwen."
            )


def completion_logits(model: PreTrainedModel, batch: Sequence[PromptGroup]) -> Tensor:
    """The logits, (n, V), of the distributions that the completion tokens were drawn from."""
    packed = pack(batch, model.device)
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
