"""A reward model on disk and at work: it gives completions probabilities.

A prompt is read once for all of its completions, or with each of them by models that can't be read
by segments (``sampling.shared_prompt``).

network = build(policy.model, "all", likelihood=True, lora_rank=16, seed=0)
job.fit(network, labelled, ..., label_gradients)
reward_model = RewardModel(folder, tokenizer, form, hashes, network)
reward_model.save()
reward_model.final(completions, problems)
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from reasonrl.learning.functional import padded
from reasonrl.learning.supervised import micro_batches
from reasonrl.policy.policy import load_policy, load_tokenizer
from reasonrl.problems.prompts import PromptForm, build_prompts, form_from, plain_values
from reasonrl.reward_models.network import RewardNetwork
from reasonrl.runs.preemption import at_own_pace
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling.agreement import why_not_by_segments
from reasonrl.sampling.shared_prompt import continue_from, prefill, shared_prompt_attention
from reasonrl.types import Completion, Problem
from reasonrl.util.atomic import atomic_folder, json_text
from reasonrl.util.errors import UserError

TokenIds = tuple[int, ...]

DESCRIPTION, HEAD = "reward_model.json", "head.safetensors"
SCALE = "scale.factor"  # the network's name of what is "scale" in the head's file
# Tokens whose keys and values a forward pass holds, prompts and padding included.
TOKENS_IN_FLIGHT = 4096


def question_hash(question: str) -> str:
    """The hash by which a reward model remembers a question that it was trained on."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


@dataclass
class Description:
    """A reward model without its weights: this is enough to tell whether it may be asked."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    form: PromptForm  # of the zero-shot prompts that it was trained with
    questions: frozenset[str]  # ``question_hash`` of those whose completions it was trained on

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Reads the description in a folder. Raises UserError if there is no reward model."""
        try:
            described = json.loads((folder / DESCRIPTION).read_bytes())
            form, questions = form_from(described["prompt"]), frozenset(described["questions"])
            tokenizer = load_tokenizer(str(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _no_reward_model(folder, f"{type(error).__name__}: {error}") from None
        return cls(folder, tokenizer, form, questions)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError unless token ids of ``tokenizer`` mean the same to the reward model."""
        own, other = self.tokenizer, tokenizer
        if own.get_vocab() != other.get_vocab() or own.eos_token_id != other.eos_token_id:
            raise UserError(
                f"reward_model={self.folder} must have the policy's tokenizer; got a vocabulary of "
                f"{len(own)}, EOS {own.eos_token_id}, and the policy's of {len(other)}, EOS "
                f"{other.eos_token_id}. Train the reward model from the same base model."
            )

    def check_not_trained_on(self, problems: Sequence[Problem]) -> None:
        """Raises UserError if the reward model was trained on any of the questions."""
        seen = [p.id for p in problems if question_hash(p.question) in self.questions]
        if seen:
            raise UserError(
                f"reward_model={self.folder} must not have been trained on the questions it is "
                f"tested on; got {len(seen)} of {len(problems)} that it was, {seen[0]} among them. "
                "Test on another split."
            )


@dataclass
class RewardModel(Description):
    """A trained reward model at work."""

    network: RewardNetwork

    @classmethod
    def load(cls, folder: Path, dtype: str, device: torch.device) -> RewardModel:
        """Loads a reward model with weights of ``dtype`` (float32, bfloat16).

        Raises UserError if the folder doesn't hold one.
        """
        known = Description.read(folder)
        try:
            head = load_file(folder / HEAD)
            policy = load_policy(str(folder), dtype, device)
            network = RewardNetwork(policy.model, likelihood="scale" in head)
            state = {SCALE if name == "scale" else name: t for name, t in head.items()}
            loaded = network.load_state_dict(state, strict=False)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _no_reward_model(folder, f"{type(error).__name__}: {error}") from None
        missing = [name for name in loaded.missing_keys if not name.startswith("policy.")]
        if missing or loaded.unexpected_keys:
            raise _no_reward_model(folder, f"a head of {', '.join(head)}")
        return cls(folder, known.tokenizer, known.form, known.questions, network.eval())

    def save(self) -> None:
        """Writes ``folder``, whole or not at all.

        It then holds the trunk as transformers loads it, the head, and the description. Raises
        UserError if it can't be written.
        """
        with atomic_folder(self.folder) as target:
            self.network.policy.save_pretrained(target)
            self.tokenizer.save_pretrained(target)
            state = self.network.state_dict()
            head = {
                "scale" if name == SCALE else name: t
                for name, t in state.items()
                if not name.startswith("policy.")
            }
            (target / HEAD).write_bytes(save(head))
            description = {"prompt": plain_values(self.form), "questions": sorted(self.questions)}
            (target / DESCRIPTION).write_bytes(json_text(description).encode())

    def token_logits(
        self,
        completions: Sequence[Completion],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
        process: Process = ALONE,
    ) -> list[np.ndarray]:
        """The logit after each token of each completion: arrays of shape (len(token_ids),).

        Token ids are scored as they were sampled. A problem's prompt is read once, however many
        completions it has.

        problems: each completion's problem, in the completions' order.
        on_progress: is called with the number of completions just scored.
        process: one of those that score together, each some of the passes. These are planned as by
            one process, so the logits are the same to the bit for any number of processes.
        """
        if not completions:
            return []
        of_question = {problem.question: problem for problem in problems}
        prompts = build_prompts(list(of_question.values()), self.tokenizer, self.form)
        prompt_of = dict(zip(of_question, (p.token_ids for p in prompts), strict=True))
        completions_of = defaultdict(list)  # by prompt; an empty completion has nothing to score
        for i, (completion, problem) in enumerate(zip(completions, problems, strict=True)):
            if completion.token_ids:
                completions_of[prompt_of[problem.question]].append(i)
        shares_prompts = process.first(lambda: self._shares_prompts)  # passes are dealt out by it
        read = self._read_shared if shares_prompts else self._read_each
        mine: dict[int, np.ndarray] = {}
        with at_own_pace(process), torch.inference_mode():
            for indices, scored in read(completions_of, completions, process):
                if not np.isfinite(scored).all():
                    raise UserError(
                        f"reward_model={self.folder} must give finite numbers; got NaN or ∞. "
                        "Train it again with a lower learning rate."
                    )
                for index, of_tokens in zip(indices, scored, strict=True):
                    mine[index] = of_tokens[: len(completions[index].token_ids)].copy()
                if on_progress:
                    on_progress(len(indices))
            empty = sum(not c.token_ids for c in completions)
            if on_progress and empty and process.is_main:
                on_progress(empty)
        logits = [np.zeros(0, dtype=np.float32)] * len(completions)
        for of_process in process.gather(mine):
            for i, of_tokens in of_process.items():
                logits[i] = of_tokens
        return logits

    @cached_property
    def _shares_prompts(self) -> bool:
        """Whether the trunk is read right where completions share a prompt."""
        return why_not_by_segments(self.network.policy) is None

    def _read_shared(
        self,
        completions_of: Mapping[TokenIds, Sequence[int]],
        completions: Sequence[Completion],
        process: Process,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields this process's completions by index, with their tokens' logits, pass by pass."""
        policy, device = self.network.policy, self.network.device
        passes = [
            (group, batch)
            for group in micro_batches(list(completions_of), TOKENS_IN_FLIGHT)
            for batch in micro_batches(_rows(group, completions_of, completions), TOKENS_IN_FLIGHT)
        ]
        with shared_prompt_attention(policy):
            for group, of_group in groupby(process.piece(passes), key=itemgetter(0)):
                # The last token of each prompt is left to the rows, as its prediction is read too.
                segment = prefill(policy, [prompt[:-1] for prompt in group])
                for _, batch in of_group:
                    places = torch.tensor([row.place for row in batch], device=device)
                    ids = padded(
                        (group[row.place][-1], *completions[row.index].token_ids) for row in batch
                    ).to(device)
                    hidden = continue_from(policy, segment, places, ids)
                    scored = self.network.read(hidden, ids[:, 1:]).cpu().numpy()
                    yield [row.index for row in batch], scored

    def _read_each(
        self,
        completions_of: Mapping[TokenIds, Sequence[int]],
        completions: Sequence[Completion],
        process: Process,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """The same, where each completion is read with its own prompt."""
        rows = [
            _Whole(i, prompt, tuple(completions[i].token_ids))
            for prompt, its in completions_of.items()
            for i in its
        ]
        for batch in process.piece(list(micro_batches(rows, TOKENS_IN_FLIGHT))):
            scored = self.network(batch, torch.float32)  # it computes in the dtype of its weights
            yield [row.index for row in batch], scored.cpu().numpy()

    def token_probabilities(
        self,
        completions: Sequence[Completion],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
        process: Process = ALONE,
    ) -> list[np.ndarray]:
        """P(correct) after each token of each completion; see ``token_logits``."""
        return [
            expit(logits)
            for logits in self.token_logits(completions, problems, on_progress, process)
        ]

    def final(
        self,
        completions: Sequence[Completion],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
        process: Process = ALONE,
    ) -> list[float]:
        """P(correct) at the last token of each completion; 0.0 for an empty one."""
        probabilities = self.token_probabilities(completions, problems, on_progress, process)
        return [float(p[-1]) if len(p) else 0.0 for p in probabilities]


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt's last token and a completion to score; the prompt's other tokens are prefilled."""

    place: int  # the row in which the prompt is prefilled
    index: int  # the completion's, among all that are scored
    length: int  # the number of tokens in memory: what is prefilled, padding included, and the row

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class _Whole:
    """A prompt and a completion to score."""

    index: int  # the completion's, among all that are scored
    prompt_ids: TokenIds
    completion_ids: TokenIds

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def _rows(
    group: Sequence[tuple[int, ...]],
    completions_of: Mapping[tuple[int, ...], Sequence[int]],
    completions: Sequence[Completion],
) -> list[_Row]:
    """The rows of prompts that are prefilled together."""
    prefilled = max(map(len, group)) - 1
    return [
        _Row(place, i, prefilled + 1 + len(completions[i].token_ids))
        for place, prompt in enumerate(group)
        for i in completions_of[prompt]
    ]


def _no_reward_model(folder: Path, reason: str) -> UserError:
    reason = " ".join(reason.split())[:300].rstrip(".")
    return UserError(
        f"reward_model={folder} must be the folder of a saved reward model; got {reason}. "
        "Pass the folder of another one."
    )
