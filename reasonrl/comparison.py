"""The runs of a sweep side by side, once it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from reasonrl.metrics import Estimate
from reasonrl.progress import console
from reasonrl.report.tables import comparison_table

if TYPE_CHECKING:  # torch is slow to import, and a sweep that is refused doesn't need it
    from reasonrl.train import Result

METRIC = "maj@1"


class Comparison(Callback):
    """Hydra tells it when a job of a multirun has ended, and when all have."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, ...], Result] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.status == JobStatus.COMPLETED and job_return.return_value is not None:
            self._results[tuple(config.hydra.overrides.task)] = job_return.return_value

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ARG002 (Hydra's)
        if len(self._results) > 1:
            rows = dict(zip(short_names(self._results), compare(self._results), strict=True))
            console.print(comparison_table("comparison, by maj@1; gains are paired", rows))


def short_names(overrides: Mapping[tuple[str, ...], object]) -> list[str]:
    """Of each run the overrides that not all of them share, by the last part of their keys."""
    shared = set.intersection(*(set(run) for run in overrides))
    return ["\n".join(_short(o) for o in run if o not in shared) for run in overrides]


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def compare(results: Mapping[tuple[str, ...], Result]) -> list[dict[str, Estimate]]:
    """Of each run, in order: its accuracy, what it gains on the policy it started from, its
    conditioning gap where it has one, and what it gains on the first of the runs, if that has
    answered the same problems. Differences are paired.
    """
    first, *_ = results.values()
    rows = []
    for result in results.values():
        after = result.after
        estimates, gains = after.estimates(), after.gain_on(result.before)
        most_samples = [name for name in gains if name.startswith("pass@")][-1]
        row = {
            METRIC: estimates[METRIC],
            "gain on: its start": gains[METRIC],
            f"{most_samples}: gain on start": gains[most_samples],
        }
        if result.worst is not None:
            row["conditioning: gap"] = after.gain_on(result.worst)[METRIC]
        if result is not first and after.problem_ids == first.after.problem_ids:
            row["gain on: the first run"] = after.gain_on(first.after)[METRIC]
        rows.append(row)
    return rows
