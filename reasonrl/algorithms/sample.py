"""Completions of the starting policy, labelled by their final answers.

    for each split of train, validation:
        K completions of every question, sampled from π_0

Reward models learn from the completions of train and are judged on those of validation. Nothing is
learnt here.
"""

from __future__ import annotations

from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.job import Job
from reasonrl.util.seeding import derive_seed


def run(job: Job, settings: SampleConfig) -> None:
    sampler = job.sampler(job.init)
    for split, problems in (("train", job.train), ("validation", job.validation)):
        job.collect(
            sampler,
            problems,
            job.prompts(problems, few_shot=job.few_shot),
            job.params(settings.num_samples_per_prompt, settings.temperature),
            seed=derive_seed(job.config.seed, "sample", split),
            file=job.run.rollouts / f"{split}.parquet",
            description=f"sampling: {split}",
        )
