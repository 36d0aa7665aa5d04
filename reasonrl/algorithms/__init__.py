"""One file for each algorithm: a function from a Job to a SavedPolicy.

Those that make something else than a policy, for other runs to use, leave it in the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable

from reasonrl.algorithms import ei, orm, ppo, sample, sft, sorm
from reasonrl.job import Job
from reasonrl.policy import SavedPolicy

ALGORITHMS: dict[str, Callable[[Job], SavedPolicy | None]] = {
    "sft": sft.run,
    "ei": ei.run,
    "ppo": ppo.run,
    "sample": sample.run,
    "orm": orm.run,
    "sorm": sorm.run,
}
