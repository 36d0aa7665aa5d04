"""Proximal Policy Optimization (Schulman et al., 2017), token by token (paper, section 2.3).

    π_ref ← π_0;  V ← 0
    for each iteration:
        R ← N completions of each of the next questions, sampled from π at temperature T
        r_t ← reward of token t − β (log π(a_t | s_t) − log π_ref(a_t | s_t))
        A, G ← generalised advantages and returns of r under V;  A ← A whitened over all tokens
        π_old, V_old ← π, V
        for each epoch, for each minibatch of R:
            ρ_t ← π(a_t | s_t) / π_old(a_t | s_t)
            one step down the gradient of the mean over tokens of
                −min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t)
                + c_V ½ max((V − G_t)², (clip(V, V_old ± ε_V) − G_t)²) − c_H entropy
        every so often: π's maj@1 on the validation questions
    return the π with the best validation maj@1

All probabilities are at temperature T, those of π_ref too. An episode is a completion: after its
last token nothing follows, whether the policy ended it, a delimiter did (whose tokens are no
actions) or it was cut off. A pretrained π_0 is asked with a few-shot prompt throughout. Minibatches
are made of whole questions, whose N completions are then read together.

The pseudocode leaves out three options: kl_penalty=loss adds β k3 to the loss instead of taking
β k1 off the reward, and so follows the gradient of KL(π_ref ‖ π) instead of that of KL(π ‖ π_ref);
kl_target is the KL to which β adapts; max_approx_kl ends an iteration early.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.job import Job
from reasonrl.learning.functional import (
    adapt_kl_coef,
    generalized_advantages,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_sum,
    off_policy_weights,
    padded,
    policy_loss,
    value_loss,
    whiten,
)
from reasonrl.learning.supervised import minibatches, shares
from reasonrl.policy.policy import DTYPES
from reasonrl.policy_gradient.actor_critic import ActorCritic
from reasonrl.policy_gradient.diagnosis import Diagnosis
from reasonrl.policy_gradient.experience import (
    Experience,
    annotate,
    experience_statistics,
    experiences,
    shaped_rewards,
    token_data,
    trainable,
)
from reasonrl.policy_gradient.trainer import Trainer
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.preemption import saving
from reasonrl.types import Rollout, SavedPolicy
from reasonrl.util.seeding import derive_seed, next_in_stream

logger = logging.getLogger(__name__)


def run(job: Job, settings: PPOConfig) -> SavedPolicy:
    if not job.process.broadcast(job.run.policy.exists()):
        PPO(job, settings).train()
    return SavedPolicy(str(job.run.policy), job.few_shot)


class PPO:
    def __init__(self, job: Job, config: PPOConfig) -> None:
        self.job, self.config = job, config
        self.dtype = DTYPES[job.config.model.compute_dtype]
        self.temperature = 1.0 if config.compat.temperature_one_logprobs else config.temperature
        self.reward = job.reward()
        model = ActorCritic.build(
            job.learner(job.init).model,
            config,
            derive_seed(job.config.seed, "ppo", "lora"),
            job.process,
        )
        self.trainer = Trainer(job, config, model)
        self.diagnosis = Diagnosis(config.num_samples_per_prompt)

    def train(self) -> None:
        trainer = self.trainer
        experience = self.resume()
        if not experience:
            trainer.validate_if_due()
        while experience or not trainer.is_over:
            started = time.monotonic()
            if not experience:
                with saving(trainer.save):
                    rollouts = self.sample(trainer.state.iteration + 1)
                trainer.state.iteration += 1
                trainer.state.taken = 0
                experience = self.compute_advantages(rollouts)
            explored = time.monotonic()
            self.update(experience)
            trainer.end_iteration(experience, explored - started, time.monotonic() - explored)
            experience = []
            trainer.save_if_due()
            trainer.validate_if_due()
        trainer.finish()

    def resume(self) -> list[Experience]:
        """The experience that a kill left half learnt; empty if there is none."""
        tokens = self.trainer.resume()
        for record in self.job.process.first(lambda: read_metrics(self.job.run.metrics)):
            self.diagnosis.check(record)
        if not tokens:
            return []
        rollouts = self.sample(self.trainer.state.iteration)
        learnt = trainable(rollouts, mask_truncated=self.config.mask_truncated)
        return experiences(learnt, tokens)

    def sample(self, iteration: int) -> list[Rollout]:
        """N completions of each of the iteration's questions, from the policy as it is now."""
        job, config = self.job, self.config
        count = config.rollouts_per_iteration // config.num_samples_per_prompt
        problems = next_in_stream(job.train, (iteration - 1) * count, count, job.config.seed)
        with self.trainer.sampler() as sampler:
            return job.collect(
                sampler,
                problems,
                job.prompts(problems, few_shot=job.few_shot),
                job.params(config.num_samples_per_prompt, config.temperature),
                seed=derive_seed(job.config.seed, "ppo", iteration, "explore"),
                file=job.run.rollouts / f"iteration-{iteration:05d}.parquet",
                description=f"iteration {iteration} of {config.iterations}: sampling",
                reward=self.reward,
            )

    def compute_advantages(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        """Computes the advantage and the return of every token, and logs the iteration."""
        config, state = self.config, self.trainer.state
        learnt = trainable(rollouts, mask_truncated=config.mask_truncated)
        if not learnt:
            logger.warning("iteration %d has no completion to learn from", state.iteration)
            return []
        annotations = annotate(
            self.trainer.model,
            self.trainer.reference,
            learnt,
            self.temperature,
            config.micro_batch_tokens,
            self.dtype,
            self.job.process,
        )
        mask = annotations.loss_mask
        sampled = padded(r.completion.logprobs for r in learnt)
        old_logprobs = sampled if config.old_logprobs == "sampler" else annotations.logprobs
        kl = kl_k1(old_logprobs, annotations.ref_logprobs)
        kl_per_completion = masked_sum(kl, mask).item() / len(learnt)
        if config.kl_target is not None:
            state.kl_coef = self.job.process.broadcast(
                adapt_kl_coef(
                    state.kl_coef,
                    kl_per_completion,
                    config.kl_target,
                    config.kl_horizon,
                    len(learnt),
                )
            )
        rewards = shaped_rewards(learnt, config, state.scores)
        if config.kl_penalty == "reward":
            rewards = rewards - state.kl_coef * kl
        advantages, returns = generalized_advantages(
            rewards, annotations.values, mask, config.gamma, config.gae_lambda
        )
        padding_too = torch.ones_like(mask)
        whitened = whiten(advantages, padding_too if config.compat.unmasked_whitening else mask)

        weights = off_policy_weights(
            annotations.logprobs, sampled, config.off_policy_correction, config.off_policy_cap
        )

        record = {
            "ppo/iteration": state.iteration,
            "ppo/rollouts": state.iteration * config.rollouts_per_iteration,
            "ppo/kl": kl_per_completion,
            "ppo/kl_coef": state.kl_coef,
            "ppo/sampler_logprob_gap": masked_mean(
                (sampled - annotations.logprobs).abs(), mask
            ).item(),
            **experience_statistics(
                rollouts, config.num_samples_per_prompt, annotations, advantages, returns, "ppo"
            ),
        }
        if config.off_policy_correction != "none":
            record["ppo/off_policy_weight"] = masked_mean(weights, mask).item()
        self.job.log.log(self.trainer.steps, record)
        for warning in self.diagnosis.check(record):
            logger.warning("iteration %d: %s", state.iteration, warning)
        tokens = {
            "old_logprobs": old_logprobs,
            "ref_logprobs": annotations.ref_logprobs,
            "old_values": annotations.values,
            "advantages": weights * whitened,  # as much as weighing the loss
            "returns": returns,
        }
        return experiences(learnt, {name: x[mask] for name, x in tokens.items()})

    def update(self, experience: Sequence[Experience]) -> None:
        """Learns from the iteration's epochs of minibatches, but for those taken before a kill."""
        config, state = self.config, self.trainer.state
        seed = derive_seed(self.job.config.seed, "ppo", state.iteration, "learn")
        num_questions = config.batch_size // config.num_samples_per_prompt
        steps = list(minibatches(experience, config.epochs, num_questions, seed))
        description = f"iteration {state.iteration} of {config.iterations}: learning"
        with self.job.progress.task(description, len(steps)) as advance:
            advance(state.taken)
            for minibatch in steps[state.taken :]:
                self.trainer.save_if_due(experience)
                approx_kl = self.step(minibatch)
                advance(1)
                if config.max_approx_kl is not None and approx_kl > config.max_approx_kl:
                    break

    def step(self, minibatch: Sequence[Experience]) -> float:
        """Takes an optimizer step.

        Returns how far the policy had moved before it, in nats per token.
        """
        process = self.job.process
        num_tokens = sum(one.num_tokens for one in minibatch)
        mine = []
        rows = self.trainer.model.layout.rows(minibatch)
        for batch, weight in shares(rows, self.config.micro_batch_tokens, process):
            loss, token_metrics = self.loss(batch)
            (weight * loss / num_tokens).backward()
            if weight:
                mine.append(token_metrics)
        metrics = self.trainer.step()
        parts = list(chain.from_iterable(process.gather(mine)))
        tokens = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        ratio = tokens.pop("ratio")
        metrics |= {"ppo/ratio_min": ratio.min().item(), "ppo/ratio_max": ratio.max().item()}
        metrics |= {f"ppo/{name}": x.float().mean().item() for name, x in tokens.items()}
        self.job.log.log(self.trainer.steps, metrics)
        return process.broadcast(metrics["ppo/approx_kl"])

    def loss(self, batch: Sequence[Experience]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, summed over the batch's tokens, and the metrics of each token."""
        config = self.config
        old = {name: x.to(self.job.device) for name, x in token_data(batch).items()}
        new = self.trainer.model(
            [one.group for one in batch],
            self.dtype,
            self.temperature,
            with_entropy=config.entropy_coef > 0,
        )
        policy_losses = policy_loss(
            new.logprobs, old["old_logprobs"], old["advantages"], config.clip_range
        )
        clip_range = config.value_clip_range
        value_losses = value_loss(new.values, old["old_values"], old["returns"], clip_range)
        loss = policy_losses + config.value_coef * value_losses
        if config.entropy_coef:
            loss = loss - config.entropy_coef * new.entropy
        if config.kl_penalty == "loss":
            loss = loss + self.trainer.state.kl_coef * kl_k3(new.logprobs, old["ref_logprobs"])
        with torch.no_grad():
            ratio = (new.logprobs - old["old_logprobs"]).exp()
            moved = (new.values - old["old_values"]).abs()
            token_metrics = {
                "policy_loss": policy_losses,
                "value_loss": value_losses,
                "ratio": ratio,
                "approx_kl": kl_k3(old["old_logprobs"], new.logprobs),
                "clip_fraction": (ratio - 1).abs() > config.clip_range,
                "value_clip_fraction": moved > (clip_range or torch.inf),
            }
        return loss.sum(), {name: x.detach().cpu() for name, x in token_metrics.items()}
