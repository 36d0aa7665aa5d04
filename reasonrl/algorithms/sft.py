"""Supervised fine-tuning on the reference solutions (paper, section 3).

    θ ← argmin  Σ over (question, solution)  −log π_θ(solution | question)

The prompt is not trained on. No departure from the paper is known, but for its settings: its 4
epochs, batches of 128 and 2e-5 are for 7B and 13B models, see conf/algorithm/sft.yaml.
"""

from __future__ import annotations

from reasonrl.config.algorithm.sft import SFTConfig
from reasonrl.job import Job
from reasonrl.types import SavedPolicy
from reasonrl.util.seeding import derive_seed


def run(job: Job, settings: SFTConfig) -> SavedPolicy:
    learner = job.learner(job.init)
    job.fine_tune(
        learner,
        list(job.references().values()),
        settings,
        seed=derive_seed(job.config.seed, "sft"),
        description="fine-tuning on reference solutions",
        checkpoints="policy.checkpoints",
    )
    job.save_policy(learner, job.run.policy)
    return SavedPolicy(str(job.run.policy), few_shot=False)
