"""Attention of packed rows, without the pairs that their mask rules out.

A row holds a prompt and then completions of it (``learning.packed``). Computed under its mask,
attention costs L² pairs of tokens, and almost all of them lie between two completions. Here the
prompts attend to themselves, and the completions, each in a row of its own, to their prompts and to
themselves, by the same scaled dot-product attention. All else in a model goes token by token, and
stays in packed rows.

Legend: B packed rows, L tokens of the longest, P of the longest prompt; C completions of all rows,
T tokens of the longest; H heads, J key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


@dataclass(frozen=True, slots=True)
class Parts:
    """Where prompts and completions lie in packed rows, as indices of the flattened rows."""

    num_prompt: int  # P
    own: Tensor  # (C, T), each completion's tokens, then any
    seen: Tensor  # (C, P + T), the first P tokens of its row, and its own
    attends: Tensor  # (C, 1, T, P + T), bool, which of what is seen a token attends to
    back: Tensor  # (B, L), of each token its place among B·P tokens of prompts, then C·T others

    @classmethod
    def of(cls, rows: Sequence[tuple[int, Sequence[int]]]) -> Self:
        """The parts of rows, each given by the tokens of its prompt and of its completions.

        There must be a completion, and each may be empty.
        """
        completions = [
            (row, start, size, prompt)
            for row, (prompt, sizes) in enumerate(rows)
            for start, size in zip(accumulate(sizes, initial=prompt), sizes, strict=False)
        ]
        row, start, size, prompt = torch.tensor(completions).T[..., None]  # each (C, 1)
        length = max(prompt + sum(sizes) for prompt, sizes in rows)
        num_prompt = max(prompt for prompt, _ in rows)
        num_own = max(1, *(size for _, _, size, _ in completions))  # no tensor shall be empty
        before, after = torch.arange(num_prompt), torch.arange(num_own)
        own = row * length + start + after

        nowhere = len(rows) * length
        prompts = torch.tensor([prompt for prompt, _ in rows])[:, None]  # (B, 1)
        of_prompts = torch.arange(len(rows))[:, None] * length + before
        found = [
            of_prompts.masked_fill(before >= prompts, nowhere).flatten(),
            own.masked_fill(after >= size, nowhere).flatten(),
        ]
        back = torch.zeros(nowhere + 1, dtype=torch.long)
        back[torch.cat(found)] = torch.arange(of_prompts.numel() + own.numel())

        own = own * (after < size)
        known = (before < prompt)[:, None].expand(-1, num_own, -1)  # (C, T, P)
        causal = (after <= after[:, None]).expand(len(completions), -1, -1)
        return cls(
            num_prompt,
            own,
            torch.cat([row * length + before, own], dim=1),
            torch.cat([known, causal], dim=2)[:, None],
            back[:nowhere].view(len(rows), length),
        )

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        tensors = (x.to(device) for x in (self.own, self.seen, self.attends, self.back))
        return type(self)(self.num_prompt, *tensors)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    parts: Parts | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' ``sdpa`` attention: (B, H|J, L, D) -> (B, L, H, D).

    parts: given to the model's forward call, which hands it down. It says what the mask of packed
        rows says, which then isn't read.
    """
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # Copies, for views would hold the whole rows until the backward pass.
    q, k, v = (x[:, :, : parts.num_prompt].contiguous() for x in (query, key, value))
    of_prompts, _ = sdpa_attention_forward(module, q, k, v, None, **options)
    q, k, v = _take(query, parts.own), _take(key, parts.seen), _take(value, parts.seen)
    of_completions, _ = sdpa_attention_forward(module, q, k, v, parts.attends, **options)
    tokens = torch.cat([of_prompts.flatten(0, 1), of_completions.flatten(0, 1)])
    return tokens[parts.back], None


def _take(states: Tensor, places: Tensor) -> Tensor:
    """States (B, H, L, D) at places (C, ·) of the flattened rows: (C, H, ·, D)."""
    return states.transpose(1, 2).flatten(0, 1)[places].transpose(1, 2)


# Under the name of what it is without parts: a model that attends in another way, or doesn't hand
# down what it is given, reads the mask; and configs that are saved name nothing of ours.
AttentionInterface.register("sdpa", attention)
