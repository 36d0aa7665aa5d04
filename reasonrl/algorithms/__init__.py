"""One file for each algorithm: a function from a Job to a SavedPolicy."""

from __future__ import annotations

from collections.abc import Callable

from reasonrl.algorithms import ei, sft
from reasonrl.job import Job
from reasonrl.policy import SavedPolicy

ALGORITHMS: dict[str, Callable[[Job], SavedPolicy]] = {"sft": sft.run, "ei": ei.run}
