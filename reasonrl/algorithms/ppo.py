"""Policy gradients on a policy's own rollouts: PPO and its variants (paper, section 2.3).

    π_ref ← π_0
    for each iteration:
        R ← N completions of each of the next questions, sampled from π at temperature T,
            of all questions, or of those whose completions differ in score
        r_t ← reward of token t − β (log π(a_t | s_t) − log π_ref(a_t | s_t))
        Â ← how much more follows than the baseline, scaled                      (``advantages``)
        π_old ← π
        for each epoch, for each minibatch of R:
            ρ ← π(a_t | s_t) / π_old(a_t | s_t), of the token or its completion  (``losses``)
            one step down the gradient of the mean over tokens, or over completions, of
                −min(ρ Â_t, clip(ρ, 1 − ε₋, 1 + ε₊) Â_t)
        every so often: π's maj@1 on the validation questions
    return the π with the best validation maj@1

PPO (Schulman et al., 2017) is the loop with a value function V: its Â and G are generalised
advantages and returns of r under V, whitened over all tokens, and its loss has

                + c_V ½ max((V − G_t)², (clip(V, V_old ± ε_V) − G_t)²) − c_H entropy

A variant is a file of values, ``variant_of: ppo``; none is known to the code by its name.

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

import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.job import Job
from reasonrl.learning.functional import (
    adapt_kl_coef,
    kl_k1,
    masked_sum,
    off_policy_weights,
    padded,
)
from reasonrl.learning.supervised import minibatches, shares
from reasonrl.policy.policy import DTYPES
from reasonrl.policy_gradient.actor_critic import ActorCritic
from reasonrl.policy_gradient.advantages import BASELINES, SCALES, Scored
from reasonrl.policy_gradient.diagnosis import Diagnosis
from reasonrl.policy_gradient.experience import (
    Experience,
    annotate,
    experiences,
    numbered,
    shaped_rewards,
    token_data,
)
from reasonrl.policy_gradient.exploration import Exploration, Explored
from reasonrl.policy_gradient.losses import AGGREGATIONS, Minibatch, token_losses
from reasonrl.policy_gradient.records import rollouts_record, step_record, tokens_record
from reasonrl.policy_gradient.trainer import Trainer
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.preemption import saving
from reasonrl.types import SavedPolicy
from reasonrl.util.seeding import derive_seed

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
        self.exploration = Exploration(job, config)
        seed = derive_seed(job.config.seed, "ppo", "lora")
        model = ActorCritic.build(job.learner(job.init).model, config, seed, job.process)
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
                    explored = self.explore(trainer.state.iteration + 1)
                trainer.begin_iteration(len(explored.rollouts))
                experience = self.compute_advantages(explored)
            learns = time.monotonic()
            self.update(experience)
            trainer.end_iteration(experience, learns - started, time.monotonic() - learns)
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
        return experiences(self.explore(self.trainer.state.iteration).learnt, tokens)

    def explore(self, iteration: int) -> Explored:
        """N completions of each of the iteration's questions, from the policy as it is now."""
        with self.trainer.sampler() as sampler:
            return self.exploration.sample(sampler, iteration)

    def compute_advantages(self, explored: Explored) -> list[Experience]:
        """Computes the advantage and the return of every token, and logs the iteration."""
        config, state, learnt = self.config, self.trainer.state, explored.learnt
        record = {
            "pg/iteration": state.iteration,
            "pg/rollouts": state.sampled,
            **rollouts_record(explored.rollouts, config),
        }
        if not learnt:
            self.job.log.log(self.trainer.steps, record)
            logger.warning("iteration %d has no completion to learn from", state.iteration)
            return []
        read = annotate(
            self.trainer.model,
            self.trainer.reference,
            learnt,
            self.temperature,
            config.micro_batch_tokens,
            self.dtype,
            self.job.process,
        )
        mask = read.loss_mask
        sampled = padded(r.completion.logprobs for r in learnt)
        old_logprobs = sampled if config.old_logprobs == "sampler" else read.logprobs
        kl = kl_k1(old_logprobs, read.ref_logprobs)
        kl_per_completion = masked_sum(kl, mask).item() / len(learnt)
        state.kl_coef = self.adapted_kl_coef(kl_per_completion, len(learnt))
        rewards = shaped_rewards(learnt, config, state.scores)
        if config.kl_penalty == "reward":
            rewards = rewards - state.kl_coef * kl
        groups = torch.tensor(numbered(r.prompt.problem_id for r in learnt))
        scored = Scored(rewards, mask, read.values, groups, **explored.beside)
        advantages, returns = BASELINES[config.baseline](scored, config)
        scaled = SCALES[config.scale](advantages, scored, config)
        weights = off_policy_weights(
            read.logprobs, sampled, config.off_policy_correction, config.off_policy_cap
        )
        record |= {
            "pg/kl": kl_per_completion,
            "pg/kl_coef": state.kl_coef,
            **tokens_record(config, read, sampled, advantages, scaled, returns, weights),
        }
        self.job.log.log(self.trainer.steps, record)
        for warning in self.diagnosis.check(record):
            logger.warning("iteration %d: %s", state.iteration, warning)
        tokens = {
            "old_logprobs": old_logprobs,
            "ref_logprobs": read.ref_logprobs,
            "old_values": read.values,
            "advantages": weights * scaled,  # as much as weighing the loss
            "returns": returns,
        }
        return experiences(learnt, {name: x[mask] for name, x in tokens.items()})

    def adapted_kl_coef(self, kl: float, count: int) -> float:
        """β after ``count`` completions of so many nats each: kl_target says where it goes."""
        config, beta = self.config, self.trainer.state.kl_coef
        if config.kl_target is None:
            return beta
        return self.job.process.broadcast(
            adapt_kl_coef(beta, kl, config.kl_target, config.kl_horizon, count)
        )

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
        of_all = Minibatch.of(minibatch, self.job.config.dataset.max_new_tokens)
        mine = []
        rows = self.trainer.model.layout.rows(minibatch)
        for batch, weight in shares(rows, self.config.micro_batch_tokens, process):
            loss, of_tokens = self.loss(batch, of_all)
            (weight * loss / of_all.num_tokens).backward()
            if weight:
                mine.append(of_tokens)
        metrics = self.trainer.step() | step_record(process.gather(mine))
        self.job.log.log(self.trainer.steps, metrics)
        return process.broadcast(metrics["pg/approx_kl"])

    def loss(
        self, batch: Sequence[Experience], of_all: Minibatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, summed over the batch's tokens by weight, and the metrics of each token."""
        config = self.config
        old = {name: x.to(self.job.device) for name, x in token_data(batch).items()}
        new = self.trainer.model(
            [one.group for one in batch],
            self.dtype,
            self.temperature,
            with_entropy=config.entropy_coef > 0,
        )
        lengths = [len(ids) for one in batch for ids in one.group.completion_ids]
        losses, metrics = token_losses(new, old, lengths, config, self.trainer.state.kl_coef)
        weights = AGGREGATIONS[config.aggregation](of_all, lengths).to(losses.device)
        return (weights * losses).sum(), metrics
