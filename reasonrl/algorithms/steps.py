"""What becomes of the steps of sampled completions.

    for each of the first n sampled completions a of every training question, and each step i of a:
        C ← K completions sampled from the policy π that go on from (q, a_≤i)
        count which of C are right

What stepwise reward models and RCRL learn from. Nothing is learnt here.
"""

from __future__ import annotations

from reasonrl.config import StepsConfig
from reasonrl.continuations import label_steps
from reasonrl.job import Job


def run(job: Job) -> None:
    config = job.config.algorithm
    assert isinstance(config, StepsConfig)
    rollouts = job.samples("train", config.num_solutions_per_prompt)
    label_steps(job, rollouts, config.num_continuations, config.sample.temperature)
