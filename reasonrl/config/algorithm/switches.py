"""Which values of the switches of policy gradients go together.

Refused is what has no meaning, and what would quietly compute something else than it says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from reasonrl.config.base import require

if TYPE_CHECKING:
    from reasonrl.config.algorithm.ppo import PPOConfig

# What only a value function has; without one they are None.
OF_CRITIC = (
    "gae_lambda",
    "value_clip_range",
    "value_learning_rate",
    "value_coef",
    "value_layers",
    "detach_value",
)


def check_switches(key: str, settings: PPOConfig) -> None:
    """Raises UserError unless they do; ``key`` is where the settings stand."""
    _check_critic(key, settings)
    _check_groups(key, settings)
    _check_ratio(key, settings)


def _check_critic(key: str, settings: PPOConfig) -> None:
    if settings.baseline != "critic":
        given = [name for name in OF_CRITIC if getattr(settings, name) is not None]
        require(
            not given,
            f"{key}.{given[0] if given else ''} is a value function's, and there is none with "
            f"{key}.baseline={settings.baseline}. Leave it out, or start from {key}=grpo.",
        )
        require(
            settings.gamma == 1,
            f"{key}.gamma must be 1 without a value function: a completion is one action; got "
            f"{settings.gamma}.",
        )
        return
    missing = [n for n in OF_CRITIC if n != "value_clip_range" and getattr(settings, n) is None]
    require(
        not missing,
        f"{key}.{missing[0] if missing else ''} must be set for {key}.baseline=critic; got "
        f"null. Start from {key}=ppo, which has all of a value function's.",
    )
    rate, smoothing = settings.value_learning_rate or 0, settings.gae_lambda or 0
    require(
        0 < rate < math.inf,
        f"{key}.value_learning_rate must be above 0; got {settings.value_learning_rate}.",
    )
    require(0 <= smoothing <= 1, f"{key}.gae_lambda must be between 0 and 1; got {smoothing}.")
    for name in ("value_coef", "value_layers"):
        value = getattr(settings, name)
        require(0 <= value < math.inf, f"{key}.{name} must be 0 or more; got {value}.")
    require(
        settings.value_clip_range is None or 0 < settings.value_clip_range < math.inf,
        f"{key}.value_clip_range must be null (off) or above 0; got {settings.value_clip_range}.",
    )


def _check_groups(key: str, settings: PPOConfig) -> None:
    grouped = {
        "baseline": ("group_mean", "leave_one_out"),
        "scale": ("group_std", "group_mean"),
        "filter": ("mixed",),
    }
    for name, of_groups in grouped.items():
        require(
            settings.num_samples_per_prompt > 1 or getattr(settings, name) not in of_groups,
            f"{key}.num_samples_per_prompt must be 2 or more for "
            f"{key}.{name}={getattr(settings, name)}, which compares a question's completions; "
            "got 1.",
        )
    require(
        settings.resamplings == 0 or (settings.resamplings > 0 and settings.filter == "mixed"),
        f"{key}.resamplings must be 0 or more, and 0 where no question is left out; got "
        f"{settings.resamplings} with {key}.filter={settings.filter}. Pass {key}.filter=mixed.",
    )
    continued = settings.baseline == "step_continuations"
    require(
        (settings.num_continuations is not None and settings.num_continuations >= 1)
        if continued
        else settings.num_continuations is None,
        f"{key}.num_continuations must be 1 or more for {key}.baseline=step_continuations, "
        f"and null for any other; got {settings.num_continuations} with "
        f"{key}.baseline={settings.baseline}.",
    )
    require(
        not continued or settings.kl_penalty == "loss" or settings.kl_coef == 0,
        f"{key}.kl_penalty must be loss where steps have values of their own; got "
        f"{settings.kl_penalty} with {key}.baseline={settings.baseline}.",
    )
    # What a baseline samples is scored as it is, so the scores that it is taken off must be.
    changed = {
        "scale_scores": settings.scale_scores,
        "score_clip": settings.score_clip is not None,
        "truncation_penalty": settings.truncation_penalty > 0,
    }
    for name, given in changed.items():
        require(
            not given or settings.baseline not in ("greedy", "step_continuations"),
            f"{key}.{name}={getattr(settings, name)} changes scores, but not those that "
            f"{key}.baseline={settings.baseline} samples. Leave it out.",
        )
    pays_kl = settings.kl_penalty == "reward" and settings.kl_coef > 0
    require(
        not (pays_kl and settings.scale in ("group_std", "group_mean")),
        f"{key}.kl_penalty must be loss with {key}.scale={settings.scale}, which divides by what a "
        f"question's scores are: KL would be part of them; got {settings.kl_penalty}.",
    )
    require(
        not settings.compat.unmasked_whitening or settings.scale == "batch_std",
        f"{key}.compat.unmasked_whitening=true is about whitening, which "
        f"{key}.scale={settings.scale} isn't. Pass {key}.scale=batch_std, or leave it out.",
    )
    require(
        settings.scale != "group_mean" or settings.truncation_penalty == 0,
        f"{key}.truncation_penalty must be 0 with {key}.scale=group_mean, for which scores are "
        f"0 or more; got {settings.truncation_penalty}. Pass {key}.mask_truncated=true instead.",
    )
    require(
        not (settings.mask_truncated and settings.truncation_penalty),
        f"{key}.truncation_penalty={settings.truncation_penalty} must be 0 where truncated "
        f"completions aren't learnt from; got {key}.mask_truncated=true. Choose one.",
    )


def _check_ratio(key: str, settings: PPOConfig) -> None:
    """Checks what log-probabilities are compared, and what a completion's ratio can carry."""
    of_tokens = {
        "baseline": settings.baseline in ("critic", "step_continuations"),
        "off_policy_correction": settings.off_policy_correction != "none",
    }
    for name, given in of_tokens.items():
        require(
            not given or settings.ratio == "token" or settings.clip_detached,
            f"{key}.ratio must be token with {key}.{name}={getattr(settings, name)}, which tells "
            "tokens apart: by a completion's ratio all of them would get their mean; got "
            f"{settings.ratio}. Pass {key}.ratio=token or {key}.clip_detached=true.",
        )
    require(
        settings.off_policy_correction == "none" or settings.old_logprobs == "recomputed",
        f"{key}.off_policy_correction={settings.off_policy_correction} must have the learner's own "
        f"log-probabilities; got {key}.old_logprobs={settings.old_logprobs}, whose ratio corrects "
        f"already. Pass {key}.old_logprobs=recomputed.",
    )
    of_sampler = {
        "old_logprobs": settings.old_logprobs == "sampler",
        "off_policy_correction": settings.off_policy_correction != "none",
    }
    for name, given in of_sampler.items():
        require(
            not (given and settings.compat.temperature_one_logprobs and settings.temperature != 1),
            f"{key}.compat.temperature_one_logprobs must be false with "
            f"{key}.{name}={getattr(settings, name)}: the sampler's log-probabilities are at "
            f"{key}.temperature={settings.temperature}, and can't be compared to those at 1.",
        )
