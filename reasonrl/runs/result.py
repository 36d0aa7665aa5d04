"""What a finished run has made: a policy or a reward model, for other runs to use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.runs.folder import RunFolder, is_done, read_config, run_folder
from reasonrl.types import SavedPolicy
from reasonrl.util.errors import UserError

# This file, beside the evaluations of a policy that is asked for a return, has the paired
# difference between asking for the best and for the worst.
CONDITIONING_GAP = "conditioning_gap.json"
# The completions of an evaluation, in its folder.
GREEDY, SAMPLES = "greedy.parquet", "samples.parquet"
# The folders of the evaluations of a policy by a protocol: of the one that the run started from, of
# its own, and of its own asked for the worst return. A reward model's is ``validation``.
BEFORE, AFTER, WORST = "before", "after", "worst"
VALIDATION = "validation"


def policy_of(run: RunFolder) -> SavedPolicy:
    """The policy that a run has made, whose weights may have been removed since.

    The status doesn't count: a run that has made its policy may be evaluated once more at this
    moment, or may have been killed while it was. Raises UserError if it hasn't made it yet, or
    makes none.
    """
    if not run.result.exists():
        raise UserError(f"run={run.path} must be done; it isn't. Give its command again.")
    return read_result(run)


def read_result(run: RunFolder) -> SavedPolicy:
    """The policy in a run's result.json. Raises UserError if the run makes none."""
    values = json.loads(run.result.read_text())
    if not values:
        raise UserError(
            f"run={run.path} must be a run that makes a policy, such as algorithm=sft or ei; got "
            f"algorithm={read_config(run).algorithm.name}. Pass another run."
        )
    policy = SavedPolicy(**values)
    # Its own policy's path is where it was made: the folder may have moved since, or be a copy.
    # Another path is that of the policy it started from, where it found nothing to learn from.
    named = Path(policy.path).parent.name
    if run.policy.exists() or named in (run.path.name, run_folder(read_config(run)).path.name):
        return replace(policy, path=str(run.policy))
    return policy


def usable_policy_of(run: RunFolder) -> SavedPolicy:
    """The policy that a run has made, with its weights. Raises UserError if they aren't there."""
    policy = policy_of(run)
    if policy.path == str(run.policy) and not run.policy.exists():
        raise UserError(
            f"run={run.path} must hold the policy that it made; there is no {run.policy.name}/ in "
            "it. Copy that folder too, or pass the run that has it."
        )
    return policy


def reward_model_of(run: RunFolder, key: str) -> Path:
    """The folder of the reward model that a run made. Raises UserError if it made none."""
    if not is_done(run) or not run.reward_model.exists():
        makers = [name for name, one in ALGORITHMS.items() if one.makes == "reward model"]
        raise UserError(
            f"{key}={run.path} must be a finished run of algorithm={' or '.join(makers)}; got "
            f"{'a run without a reward model' if is_done(run) else 'no finished run'}. "
            f"Make one with python train.py algorithm={makers[0]}."
        )
    return run.reward_model


def evaluation_files(run: RunFolder) -> dict[str, Path]:
    """The files of estimates that a run has, by what they estimate.

    The names ``before``, ``after``, ``worst``, ``gain`` and ``conditioning_gap`` stand for the
    estimates by ``run.protocol``; those by another protocol have it in front, as in
    ``test-k96-t0.7/after``. Older runs have one protocol, which isn't named. The name
    ``validation`` stands for a reward model's estimates.
    """
    files = {}
    for depth in ("*", "*/*", "*/*/*"):
        for file in sorted(run.evaluation.glob(f"{depth}.json")):
            kind = [*file.relative_to(run.evaluation).parts[:-1]]
            if file.stem != "metrics":
                kind.append(file.stem)
            if kind[0] == run.protocol:
                del kind[0]
            files["/".join(kind)] = file
    return files
