"""What the paths of a configuration hold, as hashes that count in an identity.

The same path may hold other data or weights tomorrow, and then names another run. A configuration
that knows its contents is stored with them: who reads it from a run's folder knows the run without
reading the data again. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from reasonrl.config.schema import EvaluateConfig
from reasonrl.policy.source import HUB_FILES
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.result import reward_model_of, usable_policy_of
from reasonrl.util.digest import content_of_folder
from reasonrl.util.errors import UserError

C = TypeVar("C", bound=EvaluateConfig)


@dataclass
class Contents:
    """The hashes of what a configuration reads; None where it reads nothing, or can't yet."""

    learnt: str | None  # the problems that are learnt from and validated on, or exemplars
    judged: str | None  # the problems of an evaluation
    model: str | None = None
    init: str | None = None  # the policy of ``init.run``
    # The reward model of ``reward.run``, or the function of the user's own.
    reward: str | None = None


def with_contents(config: C, found: Contents) -> C:
    """The configuration with these contents. Raises UserError if it was stored with others."""
    groups = {
        "dataset": found.learnt,
        "evaluation": found.judged,
        "model": found.model,
        "init": found.init,
        "reward": found.reward,
    }
    known: dict[str, Any] = {}
    for group, content in groups.items():
        settings = getattr(config, group, None)
        if settings is None:  # an evaluation has neither init nor reward
            continue
        if settings.content is not None and content not in (None, settings.content):
            raise UserError(
                f"{_place(config, group)} must hold what it held when the run was planned; it "
                "holds something else by now. Put that back, or give the command again: it makes "
                "another run."
            )
        known[group] = replace(settings, content=content or settings.content)
    return replace(config, **known)


def content_of_policy(run: str) -> str:
    """The hash of the policy that a run has made. Raises UserError if it hasn't."""
    return content_of_folder(Path(usable_policy_of(RunFolder(Path(run))).path), HUB_FILES)


def content_of_reward_model(run: str, key: str) -> str:
    """The hash of the reward model that a run has made. Raises UserError if it hasn't."""
    return content_of_folder(reward_model_of(RunFolder(Path(run)), key), HUB_FILES)


def _place(config: Any, group: str) -> str:
    """The setting that says where a group's content lies."""
    if group == "evaluation":
        return f"evaluation.split={config.evaluation.split} of dataset={config.dataset.name}"
    if group == "dataset":
        path = config.dataset.path
        return f"dataset={config.dataset.name}" if path is None else f"dataset.path={path}"
    if group == "model":
        return f"model.path={config.model.path}"
    if group == "reward" and config.reward.code is not None:
        return f"reward.path={config.reward.code}"
    run = config.init.run if group == "init" else config.reward.finished_run()
    return f"{group}.run={run}"
