"""The algorithms, one file each: a function from a Job and its settings to a SavedPolicy.

Algorithms that make something else than a policy, for other runs to use, leave it in the run's
folder and return None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reasonrl.algorithms import ei, orm, ppo, rcrl, sample, sft, sorm, steps
from reasonrl.config import algorithm as declared
from reasonrl.config.base import check_listed
from reasonrl.job import Job
from reasonrl.types import SavedPolicy

ALGORITHMS: dict[str, Callable[[Job, Any], SavedPolicy | None]] = {
    "sft": sft.run,
    "ei": ei.run,
    "ppo": ppo.run,
    "rcrl": rcrl.run,
    "sample": sample.run,
    "steps": steps.run,
    "orm": orm.run,
    "sorm": sorm.run,
}
check_listed("algorithm", declared.ALGORITHMS, ALGORITHMS)
