"""The maths, as pure functions of tensors.

Dimension letters: B completions, T completion tokens, V vocabulary.

``loss_mask`` (B, T) is bool, and True where a token trains. Functions that take one don't read what
stands elsewhere, even if it is NaN. The others work token by token, on any shape: where padding may
hold garbage, give them x[loss_mask] alone, because masking what they return still leaves 0 · ∞ =
NaN in a gradient.

Functions that take logits or a loss_mask compute half precision in float32; float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(sequences: Iterable[Sequence[float]], value: float = 0) -> Tensor:
    """The sequences as the rows of one tensor (B, T), padded on the right with ``value``."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=value)


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the given ids, in the shape of ``token_ids``.

    logits: (B, T, V), where position t predicts token_ids[:, t]; or (n, V), of n tokens without
        padding.
    token_ids: (B, T), or (n,).
    """
    scaled = _full_precision(logits) / temperature
    loss = F.cross_entropy(scaled.flatten(0, -2), token_ids.flatten(), reduction="none")
    return -loss.view(token_ids.shape)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ_v p_v log p_v in nats, where p = softmax(logits / temperature): (…, V) -> (…).

    A token of probability 0 (logit −∞) contributes 0, and 0 to the gradient too.
    """
    logprobs = F.log_softmax(_full_precision(logits) / temperature, dim=-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -math.inf, 0.0)).sum(dim=-1)


def masked_sum(values: Tensor, loss_mask: Tensor) -> Tensor:
    """The sum of values (B, T) where loss_mask (B, T) is True; NaN elsewhere doesn't matter."""
    return _full_precision(values).masked_fill(~loss_mask, 0.0).sum()


def masked_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean, a scalar, of values (B, T), which may be bool, where loss_mask (B, T) is True.

    Raises ValueError if loss_mask is nowhere True: 0.0 would pass for a measurement.
    """
    if not loss_mask.any():
        raise ValueError("loss_mask must be True somewhere")
    return masked_sum(values, loss_mask) / loss_mask.sum()


def whiten(values: Tensor, loss_mask: Tensor) -> Tensor:
    """(values − mean) / (std + 1e-8) where loss_mask is True, 0.0 elsewhere.

    Arguments and result are (B, T). Mean and population std are those of the True positions. The
    result is always centred: there is no option to keep the mean. Raises ValueError if loss_mask is
    nowhere True.
    """
    centred = _full_precision(values)
    # The second round takes off what rounding left of the mean. Of equal values nothing else is
    # left, and the division would make about ±1 of it.
    for _ in range(2):
        centred = centred - masked_mean(centred, loss_mask)
    std = masked_mean(centred**2, loss_mask).sqrt()
    return (centred / (std + 1e-8)).masked_fill(~loss_mask, 0.0)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log π − log π_ref of each token, in nats: an unbiased estimate of KL(π ‖ π_ref).

    It may be negative. The tokens are sampled from π, the policy; the tensors may have any shape.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r − 1 − log r of each token, where r = π_ref / π, in nats; it is never negative.

    As a number it estimates KL(π ‖ π_ref), as ``kl_k1`` does. As a loss it doesn't: with the tokens
    given, the expectation of its gradient, Σ (π − π_ref) ∇ log π, is that of the other divergence,
    KL(π_ref ‖ π).
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio  # exp(x) − 1 would lose all digits of a small x²/2


@torch.no_grad()
def generalized_advantages(
    rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, both (B, T) and 0.0 where loss_mask is False.

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γλ A_{t+1}        returns_t = A_t + V_t

    Source: Schulman et al. 2016 (arXiv 1506.02438), eqs 11, 12 and 16. After a completion's last
    token the episode is over and V = 0, whether EOS ended it or it was cut off. Advantages and
    returns are targets: no gradient flows through them.

    rewards, values: (B, T), where values[:, t] = V(state before token t).
    loss_mask: (B, T), True on a prefix of every row, which may be empty. Raises ValueError if it
        isn't.
    """
    if (loss_mask[:, 1:] & ~loss_mask[:, :-1]).any():
        raise ValueError("loss_mask must be True on a prefix of every row")
    # Zeros after the last token are all it takes to end the episode there.
    rewards = _full_precision(rewards).masked_fill(~loss_mask, 0.0)
    values = _full_precision(values).masked_fill(~loss_mask, 0.0)
    deltas = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    advantages = torch.zeros_like(deltas)
    advantage = deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + gamma * gae_lambda * advantage
        advantages[:, t] = advantage
    return advantages, advantages + values


def off_policy_weights(
    logprobs: Tensor, sampled_logprobs: Tensor, correction: str, cap: float
) -> Tensor:
    """What each token's loss is multiplied by, as another engine than the learner's sampled it.

        w = exp(logprobs − sampled_logprobs)     none: 1     tis: min(w, C)
                                                 mask: w where 1/C ≤ w ≤ C, else 0

    It is no part of the graph, and the tensors may have any shape. Source: truncated importance
    sampling of Ionides 2008 for rollouts of an engine of its own (Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training").

    logprobs: of the learner as it was when the tokens were sampled.
    correction: none, tis or mask; raises ValueError for another.
    cap: C, 1 or more.
    """
    if correction == "none":
        return torch.ones_like(logprobs)
    weights = (logprobs - sampled_logprobs).detach().exp()
    if correction == "tis":
        return weights.clamp(max=cap)
    if correction == "mask":
        return weights * ((weights >= 1 / cap) & (weights <= cap))
    raise ValueError(f"correction={correction} must be none, tis or mask")


def policy_loss(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """−min(ρA, clip(ρ, 1 − ε₋, 1 + ε₊) A) of each token, where ρ = exp(log_ratio).

    It is to be minimised, and the tensors may have any shape. Source: Schulman et al. 2017 (arXiv
    1707.06347), eq. 7, with its sign turned and before the mean; bounds of their own are those of
    DAPO (Yu et al. 2025, arXiv 2503.14476), eq. 10.

    log_ratio: log π(token) − log π_old(token), or of a sequence: see ``sequence_means``.
    low, high: ε₋ and ε₊.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def detached_policy_loss(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, low: float, high: float
) -> Tensor:
    """−sg(clip(ρ, 1 − ε₋, 1 + ε₊)) A log π of each token, where ρ = exp(log_ratio).

    No token's gradient vanishes where ρ is cut, as it does in ``policy_loss``. Source: CISPO
    (MiniMax-M1 2025, arXiv 2506.13585), eq. 4 and 5; the paper cuts ρ above alone (recalled).
    """
    weight = log_ratio.detach().exp().clamp(1 - low, 1 + high)
    return -weight * advantages * logprobs


def sequence_means(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each number of (n,) as the mean of its sequence; ``lengths`` cut n into sequences.

    Of log-ratios it is GSPO's (Zheng et al. 2025, arXiv 2507.18071), eq. 7.
    """
    return torch.cat([part.mean().expand(len(part)) for part in values.split([*lengths])])


def group_means(scores: Tensor, groups: Tensor) -> Tensor:
    """The mean score of each completion's group: (B,), (B,) -> (B,).

    It is rounded from float64, so that equal scores of float32 have exactly their own mean.

    groups: the number of the group, from 0, that each completion belongs to.
    """
    return (_by_group(scores, groups) / _sizes(groups)).to(scores.dtype)


def means_of_the_others(scores: Tensor, groups: Tensor) -> Tensor:
    """The mean score of the other completions in each one's group; its own where it has no other.

    It is rounded as that of ``group_means`` is. Source: RLOO (Kool et al. 2019; Ahmadian et al.
    2024, arXiv 2402.14740), eq. 8.
    """
    others = _sizes(groups) - 1
    means = (_by_group(scores, groups) - scores) / others
    return torch.where(others > 0, means, scores).to(scores.dtype)


def group_stds(scores: Tensor, groups: Tensor) -> Tensor:
    """The standard deviation of each completion's group, by n − 1; 0 in a group of one.

    It is exactly 0 in a group of equal scores of float32.
    """
    deviations = scores - _by_group(scores, groups) / _sizes(groups)
    variances = _by_group(deviations**2, groups) / (_sizes(groups) - 1).clamp(min=1)
    return variances.sqrt().to(scores.dtype)


def _by_group(values: Tensor, groups: Tensor) -> Tensor:
    """The sum of each one's group, in float64."""
    sums = values.new_zeros(int(groups.max()) + 1, dtype=torch.float64)
    return sums.index_add(0, groups, values.double())[groups]


def _sizes(groups: Tensor) -> Tensor:
    """The number of completions in each one's group."""
    return groups.bincount()[groups]


def step_advantages(
    values: Sequence[Sequence[float]], starts: Sequence[Sequence[int]], scores: Tensor, length: int
) -> Tensor:
    """Â_t = V(s_{j+1}) − V(s_j) of each token t of step j: (B, length).

    Behind a completion's end the numbers mean nothing. The value of what follows the last step is
    the completion's score. Source: VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679), eq. 6, with
    steps for its states and nothing discounted.

    values: of each completion the values V(s_j) of the states in which its steps begin.
    starts: of each completion the first token of each step, ascending, 0 the first.
    """
    advantages = scores.new_zeros(len(scores), length)
    for row, (of_steps, first, score) in enumerate(
        zip(values, starts, scores.tolist(), strict=True)
    ):
        after = [*of_steps[1:], score]
        for number, start in enumerate(first):
            advantages[row, start:] = after[number] - of_steps[number]
    return advantages


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None
) -> Tensor:
    """½ max((v − R)², (clip(v, v_old − ε, v_old + ε) − R)²) of each token, for any shape.

    clip_range: ε, in the unit of values; with None the loss is ½ (v − R)².

    PPO's paper doesn't clip values; the authors' code (OpenAI Baselines, ppo2) does.
    """
    squared = (values - returns) ** 2
    if clip_range is not None:
        clipped = values.clamp(old_values - clip_range, old_values + clip_range)
        squared = torch.maximum(squared, (clipped - returns) ** 2)
    return 0.5 * squared


def explained_variance(values: Tensor, returns: Tensor, loss_mask: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns) where loss_mask is True; all tensors are (B, T).

    At 1 the values foresee the returns but for a constant; at 0 they do no better than a constant,
    and below 0 worse. It is nan where all returns are the same or there are none: then there is
    nothing to explain.
    """
    returns = _full_precision(returns)[loss_mask]
    if (returns == returns[:1]).all():  # their computed variance may be a rounding error
        return math.nan
    unexplained = (returns - values[loss_mask]).var(correction=0)
    return 1.0 - (unexplained / returns.var(correction=0)).item()


def adapt_kl_coef(
    kl_coef: float, kl: float, target: float, horizon: float, num_rollouts: int
) -> float:
    """The next kl_coef: β (1 + e · num_rollouts / horizon), e = clip(kl / target − 1, −0.2, 0.2).

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, whose K_β is num_rollouts / horizon
    here.

    kl_coef: β.
    kl, target: in nats per completion.
    horizon: a number of rollouts; if it is more than num_rollouts / 5, β stays positive.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_rollouts / horizon)


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
