"""What goes wrong in a PPO run, seen in its log while it runs, with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# In nats. A policy that sharpens onto the likeliest of the reference's completions costs at most
# the reference's entropy in KL (measured: 0.06 to 0.5 per token after fine-tuning), and one that
# writes the best of n of them costs less than log n for all tokens together. A policy that costs
# more writes what the reference hardly ever does.
MAX_KL_PER_TOKEN = 0.5

# The entropy may fall to a tenth of the first iteration's. A policy that began confident (tiny,
# fine-tuned: 2 nats per completion) may not fall that far: below 0.1 nats per completion nearly all
# samples of a question are the same, whatever its length.
MIN_ENTROPY_SHARE = 0.1
MIN_ENTROPY_PER_COMPLETION = 0.1

# Both count iterations. A new critic knows nothing, so the first iterations don't count; and the
# explained variance of a critic that has learnt nothing falls on either side of 0, so a few
# iterations below 0 say little.
CRITIC_WARMUP = 10
CRITIC_PATIENCE = 10

# A share of completions. Each that is cut off is wrong, so from this share on length decides much
# of what is learnt.
MAX_TRUNCATED = 0.2

# A number that should be 0 may be a little more, such as the deviation of equal scores or the
# explained variance of a constant.
ROUNDING = 1e-6


class Diagnosis:
    """Warns of conditions in a run's iterations: once when one begins, not while it lasts.

    Iterations are checked in order. A resumed run feeds a new Diagnosis the records that
    `read_metrics` gives, and is then where it was.
    """

    def __init__(self, num_samples_per_prompt: int) -> None:
        """Begins before the first iteration.

        num_samples_per_prompt: the run's; if it is 1, a question's samples can't differ.
        """
        self.num_samples_per_prompt = num_samples_per_prompt
        self._iterations = 0
        self._first_entropy = math.nan
        self._unexplained = 0  # iterations running with an explained variance of 0 or less
        self._lasting: set[str] = set()

    def check(self, record: Mapping[str, Any]) -> list[str]:
        """The conditions that begin with this iteration, each with its symptom, cause and remedy.

        record: an iteration's, as it is logged or read back; other records of the log begin
            nothing, nor does an iteration with nothing to learn from. A value that isn't finite
            counts as unknown, as in the log, but an unknown KL counts as too large.
        """
        if "pg/kl" not in record:
            return []
        seen = {name: _finite(value) for name, value in record.items()}
        if self._iterations == 0:
            self._first_entropy = seen["pg/entropy"]
        self._iterations += 1
        explained = seen.get("pg/explained_variance", math.nan)  # there may be no critic
        if self._iterations > CRITIC_WARMUP and not math.isnan(explained):
            self._unexplained = self._unexplained + 1 if explained <= ROUNDING else 0
        conditions = {
            "kl": self._kl(seen),
            "entropy": self._entropy(seen),
            "critic": self._critic(seen),
            "scores": self._scores(seen),
            "advantages": self._advantages(seen),
            "truncation": self._truncation(seen),
        }
        found = {name: message for name, message in conditions.items() if message is not None}
        begun = [message for name, message in found.items() if name not in self._lasting]
        self._lasting = set(found)
        return begun

    def _kl(self, seen: Mapping[str, float]) -> str | None:
        kl, length = seen["pg/kl"], seen["rollout/mean_length"]
        if kl <= MAX_KL_PER_TOKEN * length:
            return None
        return (
            f"KL to the reference is {kl:.3g} nats per completion of {length:.0f} tokens, above "
            f"{MAX_KL_PER_TOKEN} per token: the policy writes what the reference hardly ever does, "
            "often because the steps are too large or the reward pays for something unintended. "
            "Read the latest rollouts, and mend the reward if it does. Else raise "
            f"algorithm.kl_coef (now {seen['pg/kl_coef']:.3g}) or set algorithm.kl_target; lower "
            "algorithm.learning_rate or set algorithm.max_approx_kl."
        )

    def _entropy(self, seen: Mapping[str, float]) -> str | None:
        entropy, length = seen["pg/entropy"], seen["rollout/mean_length"]
        floor = MIN_ENTROPY_PER_COMPLETION / max(length, 1.0)
        if not entropy < max(floor, MIN_ENTROPY_SHARE * self._first_entropy):
            return None
        return (
            f"Entropy is {entropy:.2g} nats per token, {self._first_entropy:.2g} in the first "
            "iteration: the samples of a question are nearly all the same, so few better ones will "
            "be found. Raise algorithm.entropy_coef, algorithm.kl_coef or algorithm.temperature, "
            "or lower algorithm.learning_rate."
        )

    def _critic(self, seen: Mapping[str, float]) -> str | None:
        if self._unexplained < CRITIC_PATIENCE:
            return None
        return (
            f"Explained variance has been 0 or less for {CRITIC_PATIENCE} iterations (now "
            f"{seen['pg/explained_variance']:.2g}): the critic predicts returns no better than "
            "their mean would, so that advantages are mostly noise. Raise algorithm.value_layers "
            "or algorithm.value_learning_rate, or pass algorithm.detach_value=false; where it is "
            "far below 0, lower algorithm.learning_rate instead."
        )

    def _scores(self, seen: Mapping[str, float]) -> str | None:
        samples = self.num_samples_per_prompt
        same = seen["pg/score_std"] <= ROUNDING
        if not (same or (samples > 1 and seen["pg/unequal_questions"] == 0)):
            return None
        if seen["rollout/correct"] == 1:
            return (
                f"All samples are right, and score {seen['rollout/score']:.3g} on average: these "
                "questions have nothing left to teach. Stop here, or take harder ones."
            )
        if same:
            return (
                f"All samples score {seen['rollout/score']:.3g}, {seen['rollout/correct']:.1%} are "
                "right: nothing tells better from worse, usually because the questions are too "
                "hard for the policy. Start from a better one with init, pay for steps on the way "
                "with reward=dense, or raise algorithm.temperature."
            )
        return (
            f"The {samples} samples of each question all score the same, "
            f"{seen['rollout/correct']:.1%} are right: questions differ, but nothing tells a "
            "question's better samples from its worse, usually because they are too alike. Raise "
            "algorithm.num_samples_per_prompt or algorithm.temperature, or pay for steps on the "
            "way with reward=dense."
        )

    def _advantages(self, seen: Mapping[str, float]) -> str | None:
        if seen.get("pg/nonzero_advantages", math.nan) != 0 or seen["pg/unequal_questions"] == 0:
            return None
        return (
            "All advantages are 0, though samples of a question score differently: nothing is "
            "learnt. With algorithm.scale=group_mean a question teaches only if its mean score is "
            "above 0, and with algorithm.mask_truncated only completions that weren't cut off do. "
            "Give rewards of 0 and more, or pass algorithm.scale=none."
        )

    def _truncation(self, seen: Mapping[str, float]) -> str | None:
        truncated = seen["rollout/finish_length"]
        if not truncated > MAX_TRUNCATED:
            return None
        return (
            f"{truncated:.1%} of completions are cut off, above {MAX_TRUNCATED:.0%}, and mean "
            f"length is {seen['rollout/mean_length']:.0f} tokens: usually they repeat themselves "
            "and never end, or need more room. Raise algorithm.truncation_penalty or "
            "algorithm.kl_coef for the first, dataset.max_new_tokens for the second."
        )


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
