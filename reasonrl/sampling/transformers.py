"""Sampling with a transformers model, which reads each prompt once, whatever its samples."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.grading.steps import ends_step
from reasonrl.policy.ends import end_tokens
from reasonrl.policy.policy import Policy, load_policy
from reasonrl.sampling.agreement import find_decoding
from reasonrl.sampling.base import Engine, SamplingParams
from reasonrl.sampling.decoding import Begin, Decoding, TokenIds
from reasonrl.sampling.draw import argmax, draw, uniforms
from reasonrl.sampling.finish import Finish, check_room
from reasonrl.sampling.shared_prompt import by_segments
from reasonrl.types import Completion, Prompt
from reasonrl.util.errors import UserError

# Finished rows are dropped once they are this share of all: dropping copies what is kept.
DROP_SHARE = 1 / 16

Row = tuple[int, int]  # (prompt index, sample index)


class _Drafts:
    """What the rows of a batch have sampled so far."""

    def __init__(self, num_rows: int, max_new_tokens: int) -> None:
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self._token_ids = np.zeros((num_rows, max_new_tokens), dtype=np.int32)
        self._logprobs = np.zeros((num_rows, max_new_tokens), dtype=np.float32)
        self._step_starts = np.zeros(num_rows, dtype=np.int64)

    def append(self, rows: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Appends a token to each of ``rows``."""
        places = rows, self.lengths[rows]
        self._token_ids[places], self._logprobs[places] = token_ids, logprobs
        self.lengths[rows] += 1

    def so_far(self, row: int) -> tuple[array[int], array[float]]:
        """The row's token ids and their logprobs."""
        so_far = slice(self.lengths[row])
        ids, logprobs = self._token_ids[row, so_far], self._logprobs[row, so_far]
        return array("i", ids.tobytes()), array("f", logprobs.tobytes())

    def step(self, row: int) -> list[int]:
        """The token ids of the step that the row is in."""
        ids: list[int] = self._token_ids[row, self._step_starts[row] : self.lengths[row]].tolist()
        return ids

    def begin_step(self, row: int) -> None:
        self._step_starts[row] = self.lengths[row]


class _Unread:
    """What rows have yet to read before they act: a prompt's last tokens, or a step's label."""

    def __init__(self, unread: Sequence[TokenIds], longest: int) -> None:
        """Makes it of each row's tokens. longest: the most tokens that are put there later."""
        self.counts = np.zeros(len(unread), dtype=np.int64)
        width = max(longest, *map(len, unread))
        self._token_ids = np.zeros((len(unread), width), dtype=np.int64)  # on the right
        for row, token_ids in enumerate(unread):
            self.put(row, token_ids)

    def put(self, row: int, token_ids: TokenIds) -> None:
        """The row reads these before it acts again."""
        self.counts[row] = len(token_ids)
        self._token_ids[row, self._token_ids.shape[1] - len(token_ids) :] = token_ids

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The next token of each of ``rows``, which all have one."""
        token_ids: np.ndarray = self._token_ids[rows, -self.counts[rows]]
        self.counts[rows] -= 1
        return token_ids


class TransformersEngine(Engine):
    """An engine for the causal language models of transformers.

    Every prompt is read once for all of its samples: where the model allows it by segments, whose
    keys and values are stored once, else with the model's own cache (``agreement`` finds it out).
    Finished rows are dropped. Draws depend on (seed, prompt index,
    sample index, step) alone, hence completions don't depend on ``batch_size``, up to rounding: in
    bfloat16 the shapes of a batch move logits enough to change some.

    EOS is any of the model's own ``end_tokens`` and those of ``SamplingParams``; ids in
    ``model.generation_config.suppress_tokens`` are never sampled: their probability is 0.

    batch_size: the most rows (prompts × samples) in flight, of ``max_new_tokens`` each. With its
        own cache a model holds a prompt in each row, and has fewer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 512,
        decoding: Decoding = by_segments,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1. Raise it.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.decoding = decoding

    @classmethod
    def open(
        cls, source: str | Policy, settings: SamplerConfig, *, dtype: str, device: torch.device
    ) -> Self:
        policy = load_policy(source, dtype, device) if isinstance(source, str) else source
        decoding = find_decoding(policy.model).decoding
        return cls(policy.model, policy.tokenizer, batch_size=settings.num_rows, decoding=decoding)

    def refresh(self, model: PreTrainedModel) -> None:
        self.model = model

    def release(self) -> None:
        del self.model

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        seed: int,
        first: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See ``Sampler.sample``.

        Raises UserError, before any computation, if a prompt is empty or leaves less than
        ``max_new_tokens`` and a step's label of the model's context. If more labels than one don't
        leave room for ``max_new_tokens``, a completion is cut where the context ends.
        """
        context = self.model.config.max_position_embeddings
        check_room(prompts, params, context, "max_position_embeddings")
        prompts = [Prompt(p.problem_id, p.token_ids + params.step_label) for p in prompts]
        samples = params.num_samples_per_prompt
        # The longest prompts come first, so that a batch too large for the memory fails at once.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
        rows = [(i, k) for i in order for k in range(samples)]
        most = self.batch_size
        if self.decoding is not by_segments and order:  # then each row holds its prompt, too
            longest = len(prompts[order[0]].token_ids)
            most = max(1, most * params.max_new_tokens // (longest + params.max_new_tokens))
        size = most // samples * samples or most

        completions: dict[Row, Completion] = {}
        every = [prompt.token_ids for prompt in prompts]
        with torch.inference_mode(), self.decoding(self.model, every) as begin:
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                for finished in self._sample_batch(prompts, batch, begin, params, seed, first):
                    completions.update(finished)
                    if on_progress is not None:
                        on_progress(len(finished))
        return [completions[i, k] for i in range(len(prompts)) for k in range(samples)]

    def _sample_batch(
        self,
        prompts: Sequence[Prompt],
        rows: list[Row],
        begin: Begin,
        params: SamplingParams,
        seed: int,
        first: int,
    ) -> Iterator[dict[Row, Completion]]:
        """Yields the rows that finished, after each step in which some did."""
        device, steps = self.model.device, params.max_new_tokens
        indices = list(dict.fromkeys(i for i, _ in rows))
        decoder, logits, rests = begin([prompts[i].token_ids for i in indices])
        place = {i: place for place, i in enumerate(indices)}
        copies = torch.tensor([place[i] for i, _ in rows], device=device)
        decoder.select(copies)
        logits = logits[copies]

        uniform = uniforms([(first + i, k) for i, k in rows], steps, seed=seed).to(device)
        drafts = _Drafts(len(rows), steps)
        unread = _Unread([rests[place[i]] for i, _ in rows], len(params.step_label))
        num_read = np.array([len(prompts[i].token_ids) for i, _ in rows]) - unread.counts
        flying = np.arange(len(rows))  # the row at each place of the decoder
        alive = np.ones(len(rows), dtype=bool)
        label = params.step_label
        last_place = self.model.config.max_position_embeddings - 1
        own_ends = end_tokens(self.tokenizer, self.model.generation_config)
        finish = Finish(self.tokenizer, own_ends, self.model.config.vocab_size, params)
        worth_a_look = finish.worth_a_look

        while True:
            number = torch.from_numpy(drafts.lengths[flying].clip(max=steps - 1)).to(device)
            chances = uniform.gather(1, number[:, None])[:, 0]
            drawn, drawn_logprobs = self._draw(logits, chances, params.temperature)
            reading = unread.counts[flying] > 0
            acting = np.flatnonzero(alive & ~reading)
            newest = drawn.cpu().numpy()[acting]
            drafts.append(flying[acting], newest, drawn_logprobs.cpu().numpy()[acting])

            finished = {}
            reached = num_read[flying[acting]]  # the place of the newest token
            full = (drafts.lengths[flying[acting]] == steps) | (reached >= last_place)
            for i in np.flatnonzero(full | worth_a_look[newest]):
                row = flying[acting[i]]
                prompt_index, sample_index = rows[row]
                ended = bool(label) and ends_step(
                    self.tokenizer, drafts.step(row), params.step_delimiter
                )
                completion = finish.completion(
                    prompts[prompt_index].problem_id,
                    sample_index,
                    *drafts.so_far(row),
                    full=bool(full[i] or (ended and reached[i] + len(label) > last_place)),
                )
                if completion is not None:
                    finished[prompt_index, sample_index] = completion
                    alive[acting[i]] = False
                elif ended:
                    drafts.begin_step(row)
                    unread.put(row, label)
            if finished:
                yield finished
            if not alive.any():
                return

            if reading.any():
                places = torch.from_numpy(np.flatnonzero(reading)).to(device)
                drawn[places] = torch.from_numpy(unread.take(flying[reading])).to(device)
            if (~alive).mean() >= DROP_SHARE:
                kept = torch.from_numpy(np.flatnonzero(alive)).to(device)
                decoder.select(kept)
                drawn, uniform = drawn[kept], uniform[kept]
                flying, alive = flying[alive], alive[alive]
            num_read[flying] += 1
            logits = decoder.step(drawn)

    def _draw(self, logits: Tensor, chances: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """A token for each row that the policy doesn't suppress, and the token's logprob."""
        suppressed = getattr(self.model.generation_config, "suppress_tokens", None)
        if suppressed:
            logits = logits.index_fill(1, torch.tensor(suppressed, device=logits.device), -math.inf)
        return argmax(logits) if temperature == 0 else draw(logits, chances, temperature)
