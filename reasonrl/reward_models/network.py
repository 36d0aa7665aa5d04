"""The network of a reward model: a causal language model with a scalar head at every token.

    logit_t = w · h_t + b + s Σ_{i ≤ t} log π(a_i | q, a_<i)        p = sigmoid(logit_t)

h_t is the trunk's last hidden state, π the trunk's own next-token distribution, and p estimates
P(the completion ends correct | question, completion up to t). Trained on the correctness of whole
completions, this is an outcome reward model (Cobbe et al. 2021, arXiv 2110.14168; Havrilla et al.
2024, section 2); trained on labels of steps, it is a stepwise one (GLoRe). The targets differ, the
network doesn't.

It departs from both in four points: there is the sum (likelihood=false leaves it out), the loss is
cross-entropy instead of squared error, no language modelling objective stands beside it, and the
result is calibrated. The sum lets the head read what the trunk knows anyway, and lets the labels of
whole completions reach every token's prediction, as in implicit process rewards (Yuan et al. 2024,
arXiv 2412.01981, with a constant reference). Without the sum a small trunk has to learn to judge
tokens from scratch, out of one bit a completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from reasonrl.learning.functional import padded, token_logprobs
from reasonrl.learning.recompute import in_chunks
from reasonrl.learning.supervised import shares
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.head import head_logits
from reasonrl.policy.policy import autocast
from reasonrl.policy.shards import empty_copy, is_sharded, refresh
from reasonrl.runs.process import ALONE, Process

Trainable = Literal["all", "head", "lora"]

# Within these bounds calibration neither reverses a ranking nor makes a step function of it.
TEMPERATURES = (0.05, 20.0)
# The head's first guess is made from so many completions.
FIRST_GUESS = 1024


@dataclass(frozen=True, slots=True)
class Labelled:
    """A completion with what its tokens' probabilities should be.

    Raises ValueError if there isn't one target for each token, or all are None.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    targets: tuple[float | None, ...]  # of each token, in [0, 1]; None: it isn't trained on
    weight: float = 1.0  # of each of these targets, relative to those of other completions

    def __post_init__(self) -> None:
        if len(self.targets) != len(self.completion_ids):
            raise ValueError(f"{len(self.targets)} targets for {len(self.completion_ids)} tokens")
        if all(target is None for target in self.targets):
            raise ValueError("no token has a target")

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class Readable(Protocol):
    """A prompt and a completion of it."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def completion_ids(self) -> tuple[int, ...]: ...


class Scale(nn.Module):
    """Multiplies by s, which is 0 at first. As a module it isn't sharded with the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, sums: Tensor) -> Tensor:
        return self.factor * sums


class RewardNetwork(nn.Module):
    """The network that the module's docstring defines."""

    def __init__(self, policy: PreTrainedModel, *, likelihood: bool) -> None:
        super().__init__()
        self.scale = Scale() if likelihood else None  # s
        self.policy = policy  # the trunk with its language modelling head
        self.score = nn.Linear(policy.config.hidden_size, 1)  # w and b
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.to(policy.device)
        self.adapters: list[Any] = []  # LoRA's, until merged; a list hides them from PyTorch

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def read(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The logits (B, T) at the tokens of completions.

        hidden: (B, 1 + T, H), the trunk's last hidden states from the last prompt token on.
        token_ids: (B, T), the completions' tokens.
        """
        logits: Tensor = self.score(hidden[:, 1:].float())[..., 0]
        if self.scale is None:
            return logits
        before = hidden[:, :-1]
        if is_sharded(self):
            logprobs = in_chunks(self._logprobs, before.flatten(0, 1), token_ids.flatten())
            logprobs = logprobs.view(token_ids.shape)
        else:
            logprobs = self._logprobs(before, token_ids)
        return logits + self.scale(logprobs.cumsum(dim=1))

    def _logprobs(self, before: Tensor, token_ids: Tensor) -> Tensor:
        """log π of each token, by the states before them."""
        head: Any = self.policy.get_output_embeddings()
        # Autocast may have left another dtype.
        return token_logprobs(head_logits(self.policy, before.to(head.weight.dtype)), token_ids)

    def forward(self, batch: Sequence[Readable], compute_dtype: torch.dtype) -> Tensor:
        """The logits (B, T) at the completions' tokens; at the padding they mean nothing."""
        device = self.device
        # The padding is on the right, where with causal attention no real token sees it.
        ids = padded(one.prompt_ids + one.completion_ids for one in batch).to(device)
        completion_ids = padded(one.completion_ids for one in batch).to(device)
        with autocast(device, torch.float32 if is_sharded(self) else compute_dtype):
            states = self.policy.base_model(input_ids=ids, use_cache=False).last_hidden_state
        first = torch.tensor([len(one.prompt_ids) - 1 for one in batch], device=device)
        places = first[:, None] + torch.arange(completion_ids.shape[1] + 1, device=device)
        places = places.clamp(max=ids.shape[1] - 1)  # places of padding may lie outside
        hidden = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        return self.read(hidden, completion_ids)


def build(
    policy: PreTrainedModel,
    trainable: Trainable,
    *,
    likelihood: bool,
    lora_rank: int,
    seed: int,
) -> RewardNetwork:
    """A float32 network to train, from a float32 policy; all its probabilities are 1/2.

    trainable: which parameters train: ``all``, the ``head`` alone (w, b and s), or the head and
        ``lora`` adapters of rank ``lora_rank`` (scale α / r = 2) on the trunk's linear layers,
        which ``merge_lora`` merges once they are trained.
    seed: decides the adapters' random half.
    """
    if trainable == "head":
        policy.requires_grad_(False)
    network = RewardNetwork(policy, likelihood=likelihood)
    if trainable == "lora":
        network.adapters = [add_lora(policy, lora_rank, seed)]
    return network


def merge_lora(network: RewardNetwork) -> None:
    """Makes the adapters part of the weights, if there are any."""
    for adapters in network.adapters:
        network.policy = adapters.merge_and_unload()
    network.adapters = []


def whole_network(network: RewardNetwork, device: torch.device) -> RewardNetwork:
    """A float32 copy of a sharded network in each process, with its adapters merged. Together."""
    policy = empty_copy(network.policy, torch.float32, device)
    whole = RewardNetwork(policy, likelihood=network.scale is not None)
    refresh(whole, network)
    return whole.eval()


@torch.no_grad()
def guess_from_likelihood(
    network: RewardNetwork,
    labelled: Sequence[Labelled],
    max_tokens: int,
    compute_dtype: torch.dtype,
    process: Process = ALONE,
) -> None:
    """Sets s and b, which are 0, to what the policy's own likelihood says before training.

    They are found by logistic regression on the first ``FIRST_GUESS`` of ``labelled``. A network
    without likelihood is left as it is.

    process: one of those that read the completions together.
    """
    if network.scale is None:
        return
    network.scale.factor.fill_(1)  # so that the network gives the log-probabilities so far
    mine: list[tuple[float, bool]] = []
    for batch, weight in shares(labelled[:FIRST_GUESS], max_tokens, process):
        so_far = network(batch, compute_dtype).cpu().numpy()
        if weight:
            mine += [
                (logprob, target > 0.5)
                for one, row in zip(batch, so_far, strict=True)
                for target, logprob in zip(one.targets, row, strict=False)
                if target is not None
            ]
    read = [pair for of_process in process.gather(mine) for pair in of_process]
    temperature, bias = process.broadcast(fit_platt(*map(np.array, zip(*read, strict=True))))
    network.scale.factor.fill_(1 / temperature)
    network.score.bias.fill_(bias)


def label_gradients(
    network: RewardNetwork,
    labelled: Sequence[Labelled],
    max_tokens: int,
    compute_dtype: torch.dtype,
    process: Process = ALONE,
) -> float:
    """Adds the gradient of the loss of an optimizer step's completions; returns that loss.

        loss = Σ w BCE(sigmoid(logit), target) / Σ w        w: the weight of the target's completion

    The sums are over all targets. Targets of equal weight count the same, so a completion counts by
    how many it has. Micro-batches and padding change nothing. ``Job.fit`` takes this function.
    """
    total_weight = sum(one.weight * sum(t is not None for t in one.targets) for one in labelled)
    total = 0.0
    for batch, share in shares(labelled, max_tokens, process):
        logits = network(batch, compute_dtype)
        targets = padded(
            ([math.nan if t is None else t for t in one.targets] for one in batch), math.nan
        ).to(network.device)
        loss_mask = ~targets.isnan() & (share > 0)
        weights = torch.tensor([one.weight for one in batch], device=network.device)[:, None]
        loss = F.binary_cross_entropy_with_logits(
            logits[loss_mask],
            targets[loss_mask],
            weights.expand_as(targets)[loss_mask],
            reduction="sum",
        )
        loss = loss / total_weight
        (loss * share).backward()
        total += loss.item()
    return process.sum(torch.tensor(total, dtype=torch.float64)).item()


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) with which sigmoid(logit / temperature + bias) is calibrated.

    They minimise binary cross-entropy, with the temperature within ``TEMPERATURES``. As in Platt
    (1999), a target is the estimate (N₊ + 1) / (N₊ + 2) or 1 / (N₋ + 2) instead of 1 or 0: so the
    bias stays finite even if the labels are separable or all alike.

    logits, labels: (n,), n > 0; a label is True for a correct completion.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=bool)
    right = labels.sum()
    targets = np.where(labels, (right + 1) / (right + 2), 1 / (len(labels) - right + 2))

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = parameters[0] * logits + parameters[1]
        loss = np.mean(np.logaddexp(0, scaled) - targets * scaled)
        errors = expit(scaled) - targets
        return loss, np.array([np.mean(errors * logits), np.mean(errors)])

    low, high = TEMPERATURES
    fitted = minimize(  # convex in 1 / temperature and bias
        loss_and_gradient,
        x0=(1.0, 0.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / high, 1 / low), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    return float(1 / fitted.x[0]), float(fitted.x[1])


@torch.no_grad()
def calibrate(
    network: RewardNetwork, logits: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    """Fits ``fit_platt`` to held-out logits and folds it into the head.

    Returns the temperature and the bias.
    """
    temperature, bias = fit_platt(logits, labels)
    network.score.weight.div_(temperature)
    network.score.bias.div_(temperature).add_(bias)
    if network.scale is not None:
        network.scale.factor.div_(temperature)
    return temperature, bias
