"""The result of a run: the evaluations of the policy it started from and of the one it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reasonrl.evaluation.policy import evaluate
from reasonrl.evaluation.summary import Evaluation
from reasonrl.pipeline.plan import Plan
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.process import ALONE, Process
from reasonrl.runs.result import AFTER, WORST, policy_of
from reasonrl.types import SavedPolicy
from reasonrl.util.progress import Progress


@dataclass(frozen=True)
class Result:
    """A finished run's evaluations, and how its policy is asked."""

    policy: SavedPolicy
    before: Evaluation  # of the policy that the run started from
    after: Evaluation  # of the run's own policy
    worst: Evaluation | None  # of its own policy asked for the worst return, if it has labels
    problems: str | None = None  # the hash of the evaluation's; None: they are generated


def result_of(planned: Plan, progress: Progress) -> Result:
    """The evaluations of a finished run that makes a policy, read from its folder."""
    policy = policy_of(planned.run)
    return Result(
        policy,
        before=evaluate_before(planned, progress),
        after=evaluate_policy(planned, policy, AFTER, progress),
        worst=(
            evaluate_policy(planned, policy.under_the_worst(), WORST, progress)
            if policy.labels
            else None
        ),
        problems=planned.config.evaluation.content,
    )


def starting_policy(planned: Plan) -> SavedPolicy:
    """The policy that a run starts from; the run that makes that policy must be done."""
    if "init" in planned.prerequisites:
        return policy_of(planned.prerequisites["init"].run)
    if planned.config.init.run is not None:
        return policy_of(RunFolder(Path(planned.config.init.run)))
    return SavedPolicy(planned.base, few_shot=planned.config.dataset.num_exemplars > 0)


def evaluate_policy(
    planned: Plan,
    policy: SavedPolicy,
    when: str,
    progress: Progress,
    process: Process = ALONE,
) -> Evaluation:
    """An evaluation by the plan's protocol: it is read from the run's folder, or made there."""
    return evaluate(
        planned.config,
        policy,
        planned.test,
        planned.exemplars,
        folder=planned.run.evaluated(planned.config.protocol) / when,
        progress=progress,
        description=f"{planned.config.algorithm.name}: evaluation {when}",
        process=process,
    )


def evaluate_before(planned: Plan, progress: Progress, process: Process = ALONE) -> Evaluation:
    """The evaluation of the policy that a run starts from, see ``Plan.evaluated_before``."""
    one, when = planned.evaluated_before
    return evaluate_policy(one, starting_policy(planned), when, progress, process)
