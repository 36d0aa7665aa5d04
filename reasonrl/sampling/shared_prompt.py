"""Attention that reads a prompt's keys and values once for all of its samples.

Keys and values live in segments: one for what all prompts begin with, one for the rest of each
prompt, one for each row's own tokens. A segment serves groups of rows: all rows, the rows of one
prompt, one row. A decode step attends to each segment with one matrix product per group and head,
then merges the parts: exact attention, as a softmax over a union is the parts' softmaxes weighed by
their denominators (Milakov & Gimelshein 2018, arXiv 1805.02867).

Legend: R rows, G groups, n rows of the largest group, H heads, J key-value heads, Q queries per
row, L tokens of a segment, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from reasonrl.policy.probe import evaluating
from reasonrl.sampling.decoding import PREFILL_TOKENS, Begin, Begun, TokenIds, num_shared

NAME = "reasonrl_shared_prompt"
BLOCK = 16  # own tokens a buffer grows by: matrix products want it whole, never a slice of a larger
# A common beginning shorter than this costs more as a segment of its own than it saves.
SHORTEST_PREFIX = 16


class Memory(Protocol):
    """What the layers of a forward pass attend to; see ``attention``."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor: ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (the interface's)
    *,
    scaling: float,
    memory: Memory,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface: (R, H|J, Q, D) -> (R, Q, H, D).

    memory: given to the model's forward call, which hands it down. Raises NotImplementedError if
    the model wants attention of another kind; ``agreement`` finds it out before anything is made.
    """
    for option in ("sliding_window", "softcap", "s_aux"):
        if options.get(option) is not None:
            raise NotImplementedError(f"attention with {option}")
    return memory.attend(int(module.layer_idx), query, key, value, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, attention)


@contextmanager
def shared_prompt_attention(model: PreTrainedModel) -> Iterator[None]:
    """In the block the model attends through ``memory``, in eval mode; then all is as before."""
    before = model.config._attn_implementation
    with evaluating(model):
        try:
            model.set_attn_implementation(NAME)
            yield
        finally:
            model.set_attn_implementation(before)


@contextmanager
def by_segments(model: PreTrainedModel, prompts: Sequence[TokenIds]) -> Iterator[Begin]:
    """In the block what all prompts begin with is read once, and the rest of each once."""
    with shared_prompt_attention(model):
        shared = num_shared(prompts)
        prefix = prefill(model, [prompts[0][:shared]]) if shared >= SHORTEST_PREFIX else None
        yield partial(_begin, model, prefix)


def _begin(model: PreTrainedModel, prefix: Segment | None, prompts: Sequence[TokenIds]) -> Begun:
    seen = 0 if prefix is None else int(prefix.lengths)
    unseen = [prompt[seen:-1] for prompt in prompts]
    segment = prefill(model, unseen, prefix) if any(unseen) else None
    decoder = SharedPrompt(model, prefix, segment, len(prompts))
    logits = decoder.step(torch.tensor([prompt[-1] for prompt in prompts], device=model.device))
    return Begun(decoder, logits, [()] * len(prompts))


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys and values of G token sequences, padded on the right to L tokens."""

    keys: list[Tensor]  # per layer, (G, J, L, D)
    values: list[Tensor]  # per layer, (G, J, L, D)
    lengths: Tensor  # (G,), the tokens of each sequence that are no padding

    def select(self, groups: Tensor) -> Segment:
        keys = [key.index_select(0, groups) for key in self.keys]
        values = [value.index_select(0, groups) for value in self.values]
        return Segment(keys, values, self.lengths[groups])

    def bias(self) -> Tensor:
        """The tensor that masks the padding when it is added to scores, (G·J, 1, L)."""
        _, kv_heads, length, _ = self.keys[0].shape
        padding = torch.arange(length, device=self.lengths.device) >= self.lengths[:, None]
        return _bias(padding, self.keys[0].dtype).repeat_interleave(kv_heads, dim=0)[:, None]


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], prefix: Segment | None = None
) -> Segment:
    """The segment of ``prompts``, each the continuation of ``prefix`` (a segment of one sequence).

    At least one prompt must hold a token. Prompts are padded on the right, where causality alone
    hides the padding from them.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    token_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in zip(token_ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    seen = 0 if prefix is None else int(prefix.lengths)
    positions = torch.arange(seen, seen + token_ids.shape[1], device=model.device)
    first = torch.zeros(1, dtype=torch.long, device=model.device)

    chunks = []
    for chunk in token_ids.split(max(1, PREFILL_TOKENS // token_ids.shape[1])):
        chunks.append(_Prefill(prefix, first, token_ids.shape[1]))
        model.base_model(
            input_ids=chunk.to(model.device),
            position_ids=positions.expand(len(chunk), -1),
            use_cache=False,
            memory=chunks[-1],
        )
    return Segment(
        [torch.cat(parts) for parts in zip(*(chunk.keys for chunk in chunks), strict=True)],
        [torch.cat(parts) for parts in zip(*(chunk.values for chunk in chunks), strict=True)],
        lengths.to(model.device),
    )


def continue_from(
    model: PreTrainedModel, prompts: Segment, rows: Tensor, token_ids: Tensor
) -> Tensor:
    """The base model's last hidden states over tokens that go on from their own prompts.

    rows: (R,), the sequence of ``prompts`` that each row continues.
    token_ids: (R, T), padded on the right, where causality alone hides the padding from the tokens.

    Returns (R, T, hidden size).
    """
    length = token_ids.shape[1]
    positions = torch.arange(length, device=model.device)
    hidden: Tensor = model.base_model(
        input_ids=token_ids,
        position_ids=prompts.lengths[rows][:, None] + positions,
        use_cache=False,
        memory=_Causal(prompts, rows, length),
    ).last_hidden_state
    return hidden


class _Causal:
    """Memory of a causal pass over rows of ``length`` tokens that go on from a prefix.

    rows: (R,), the sequence of ``prefix`` that each row continues; (1,): all continue the same one.
    """

    def __init__(self, prefix: Segment | None, rows: Tensor, length: int) -> None:
        self.prefix, self.rows = prefix, rows
        self.mask: Tensor | None = None  # (R or 1, 1, length, L + length), True = attends
        if prefix is not None:
            before = torch.arange(prefix.keys[0].shape[2], device=rows.device)
            seen = before < prefix.lengths[rows][:, None]  # (R or 1, L): no padding
            new = seen.new_ones(length, length).tril()
            parts = (seen[:, None].expand(-1, length, -1), new.expand(len(rows), -1, -1))
            self.mask = torch.cat(parts, dim=2)[:, None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if self.prefix is not None:
            key = _after(self.prefix.keys[layer][self.rows], key)
            value = _after(self.prefix.values[layer][self.rows], value)
        repeats = query.shape[1] // key.shape[1]
        out = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, dim=1),
            value.repeat_interleave(repeats, dim=1),
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scaling,
        )
        return out.transpose(1, 2)


class _Prefill(_Causal):
    """A causal pass that keeps its keys and values."""

    def __init__(self, prefix: Segment | None, rows: Tensor, length: int) -> None:
        super().__init__(prefix, rows, length)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        self.keys.append(key.contiguous())
        self.values.append(value.contiguous())
        return super().attend(layer, query, key, value, scaling)


class SharedPrompt:
    """A ``Decoder``, and the memory of its rows, which grow after prompts that they share.

    prefix: one sequence, before all prompts.
    prompts: one sequence per prompt.
    """

    def __init__(
        self, model: PreTrainedModel, prefix: Segment | None, prompts: Segment | None, rows: int
    ) -> None:
        self.model = model
        self.prefix, self.prompts = prefix, prompts
        self.prompt_of_row = torch.arange(rows, device=model.device)
        self.positions = torch.zeros_like(self.prompt_of_row)  # of each row's next token
        for segment in (prefix, prompts):
            if segment is not None:
                self.positions = self.positions + segment.lengths
        self.keys: list[Tensor] = []  # of the rows' own tokens, per layer (R, J, capacity, D)
        self.values: list[Tensor] = []
        self.length = 0
        self.capacity = 0
        self._share()

    def step(self, token_ids: Tensor) -> Tensor:
        """See ``Decoder.step``. Tokens beyond the model's context share its last place."""
        if self.length == self.capacity:
            self.capacity += BLOCK
            self.keys = [F.pad(key, (0, 0, 0, BLOCK)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, BLOCK)) for value in self.values]
        unused = torch.arange(self.capacity, device=token_ids.device) > self.length
        self._own_bias = _bias(unused, self.model.dtype)[None, None]
        last_place = self.model.config.max_position_embeddings - 1
        out = self.model(
            input_ids=token_ids[:, None],
            position_ids=self.positions.clamp(max=last_place)[:, None],
            use_cache=False,
            memory=self,
        )
        self.positions = self.positions + 1
        self.length += 1
        return out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """See ``Decoder.select``."""
        self.positions = self.positions[rows]
        self.keys = [key.index_select(0, rows) for key in self.keys]
        self.values = [value.index_select(0, rows) for value in self.values]
        kept, self.prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        if self.prompts is not None and len(kept) < len(self.prompts.lengths):
            self.prompts = self.prompts.select(kept)
        self._share()

    def _share(self) -> None:
        """Lay out which rows share which segment."""
        everything = torch.zeros_like(self.prompt_of_row)
        self._shared = [
            (segment, segment.bias(), _Groups(group_of_row))
            for segment, group_of_row in (
                (self.prefix, everything),
                (self.prompts, self.prompt_of_row),
            )
            if segment is not None
        ]
        self._alone = _Groups(torch.arange(len(everything), device=everything.device))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        rows, kv_heads, _, head_dim = key.shape
        if layer == len(self.keys):  # the first step
            self.keys.append(key.new_zeros(rows, kv_heads, self.capacity, head_dim))
            self.values.append(key.new_zeros(rows, kv_heads, self.capacity, head_dim))
        self.keys[layer][:, :, self.length] = key[:, :, 0]
        self.values[layer][:, :, self.length] = value[:, :, 0]

        query = query.reshape(rows, kv_heads, -1, head_dim)
        parts = [
            _attend_part(query, segment.keys[layer], segment.values[layer], bias, groups, scaling)
            for segment, bias, groups in self._shared
        ]
        own = self.keys[layer], self.values[layer], self._own_bias, self._alone
        parts.append(_attend_part(query, *own, scaling))
        return _merge(parts).to(query.dtype).reshape(rows, 1, -1, head_dim)


class _Groups:
    """Takes a tensor from rows (R, ...) to the groups that share a segment (G, n, ...) and back.

    group_of_row: (R,) ascending. Smaller groups are filled up with rows whose results are unused.
    """

    def __init__(self, group_of_row: Tensor) -> None:
        sizes = group_of_row.bincount()
        starts = sizes.cumsum(0) - sizes
        rows = torch.arange(len(group_of_row), device=sizes.device)
        self.shape = (len(sizes), int(sizes.max()))
        self._even = len(rows) == self.shape[0] * self.shape[1]
        places = torch.arange(self.shape[1], device=sizes.device)
        self._row = (starts[:, None] + places).clamp(max=len(rows) - 1).flatten()
        self._place = group_of_row * self.shape[1] + rows - starts[group_of_row]

    def split(self, x: Tensor) -> Tensor:
        return (x if self._even else x.index_select(0, self._row)).unflatten(0, self.shape)

    def join(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        return x if self._even else x.index_select(0, self._place)


def _attend_part(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, groups: _Groups, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention to one segment alone, and the log of its softmax's denominator, float32.

    query: (R, J, H/J, D); keys, values: (G, J, L, D); bias: (G·J or 1, 1, L).
    Returns (R, J, H/J, D) and (R, J, H/J, 1).
    """
    (size, count), (kv_heads, per_kv_head) = groups.shape, query.shape[1:3]
    grouped = groups.split(query).transpose(1, 2).reshape(size * kv_heads, count * per_kv_head, -1)
    scores = torch.baddbmm(bias, grouped, keys.flatten(0, 1).transpose(1, 2), alpha=scaling).float()
    weights = scores.softmax(dim=-1)
    # The largest weight is e^0 over the denominator of scores less their maximum. (logsumexp would
    # take every exponential again, and slowly where scores are masked.)
    log_total = scores.amax(dim=-1, keepdim=True) - weights.amax(dim=-1, keepdim=True).log()
    mixed = torch.bmm(weights.to(values.dtype), values.flatten(0, 1)).float()

    def by_row(x: Tensor) -> Tensor:
        return groups.join(x.view(size, kv_heads, count, per_kv_head, -1).transpose(1, 2))

    return by_row(mixed), by_row(log_total)


def _merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention to a union of segments: the parts, weighed by their share of the denominator."""
    mixed, log_totals = zip(*parts, strict=True)
    shares = torch.cat(log_totals, dim=-1).softmax(dim=-1).split(1, dim=-1)
    merged = mixed[0] * shares[0]
    for part, share in zip(mixed[1:], shares[1:], strict=True):
        merged = torch.addcmul(merged, part, share)
    return merged


def _bias(masked: Tensor, dtype: torch.dtype) -> Tensor:
    """0, or where masked a number so low that it weighs nothing.

    The number is finite, for a segment that is masked as a whole must not give nan.
    """
    return torch.zeros_like(masked, dtype=dtype).masked_fill_(masked, torch.finfo(dtype).min / 2)


def _after(prefix: Tensor, x: Tensor) -> Tensor:
    return torch.cat([prefix.expand(len(x), -1, -1, -1), x], dim=2)
