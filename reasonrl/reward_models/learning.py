"""What the outcome and the stepwise reward model share: learning, calibration and a report.

The two differ only in the targets of their tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
import pyarrow as pa

from reasonrl.config.algorithm.reward_model import RewardModelConfig
from reasonrl.evaluation.summary import METRICS, chosen_by_reward_model, summarise, write_estimates
from reasonrl.grading.base import Grader
from reasonrl.grading.estimates import (
    FEWEST_CLUSTERS,
    Estimate,
    bootstrap_clusters,
    estimate_auroc,
    estimate_mean,
    estimate_share,
)
from reasonrl.grading.metrics import expected_calibration_error
from reasonrl.grading.steps import step_tokens
from reasonrl.job import Job
from reasonrl.policy.head import check_head
from reasonrl.policy.policy import DTYPES
from reasonrl.policy.shards import is_sharded
from reasonrl.reward_models.model import RewardModel, question_hash
from reasonrl.reward_models.network import (
    Labelled,
    Trainable,
    build,
    calibrate,
    guess_from_likelihood,
    label_gradients,
    merge_lora,
    whole_network,
)
from reasonrl.rewards.dense import first_wrong_step
from reasonrl.runs.preemption import with_boundary
from reasonrl.runs.result import VALIDATION
from reasonrl.sampling.rollouts import write_table
from reasonrl.types import Problem, Rollout
from reasonrl.util.errors import UserError
from reasonrl.util.seeding import derive_seed

logger = logging.getLogger(__name__)

Target = float | None  # the label that is learnt at a token; None: nothing is learnt there
Targets = tuple[Target, ...]

VERDICTS = "verdicts.parquet"
VERDICT = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_index": pa.int32(),
        "correct": pa.bool_(),
        "probability": pa.float64(),
        "first_wrong_step": pa.int32(),
        "predicted_first_wrong_step": pa.int32(),
    }
)


def held_out_questions(rollouts: Sequence[Rollout], share: float, seed: int) -> set[str]:
    """The ids of a random share of the problems: at least one, and not all.

    Of a single problem there are none.
    """
    ids = sorted({rollout.prompt.problem_id for rollout in rollouts})
    count = min(max(1, round(share * len(ids))), len(ids) - 1)
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(len(ids))
    return {ids[i] for i in order[:count]}


def learn_reward_model(
    job: Job,
    config: RewardModelConfig,
    learnt: Sequence[Labelled],
    held_out: Sequence[tuple[Rollout, Targets]],
) -> None:
    """Learns from ``learnt``, calibrates on ``held_out``, and reports on the validation problems.

    Raises UserError if there are only good or only bad labels to learn from, or none to calibrate
    on.
    """
    targets = Counter(target for one in learnt for target in one.targets)
    if not (targets[1.0] and targets[0.0]):
        raise UserError(
            f"algorithm={config.name} must have good and bad labels to learn from; "
            f"got {targets[1.0]} good and {targets[0.0]} bad ones in {job.rollouts}. Sample more "
            "with algorithm.sample.num_samples_per_prompt, or from another policy with init."
        )
    if all(target is None for _, targets in held_out for target in targets):
        raise UserError(
            f"algorithm.held_out={config.held_out} must leave labels to calibrate on; "
            f"got {len(held_out)} held-out completions, all of them without. Raise it, or "
            "dataset.train_size."
        )
    if not job.process.first(job.run.reward_model.exists):
        _learn(job, config, learnt, held_out)
    write_validation(job, RewardModel.load(job.run.reward_model, "float32", job.device))


def _learn(
    job: Job,
    config: RewardModelConfig,
    learnt: Sequence[Labelled],
    held_out: Sequence[tuple[Rollout, Targets]],
) -> None:
    seed = derive_seed(job.config.seed, config.name)
    policy = job.learner(job.init).model
    if config.likelihood:
        job.process.first(lambda: check_head(policy))
    network = build(
        policy,
        cast(Trainable, config.trainable),
        likelihood=config.likelihood,
        lora_rank=config.lora_rank,
        seed=seed,
    )
    job.shard(network)
    dtype = DTYPES[job.config.model.compute_dtype]
    guess_from_likelihood(network, learnt, config.micro_batch_tokens, dtype, job.process)
    steps = job.fit(
        network,
        learnt,
        config,
        label_gradients,
        seed=seed,
        description=f"{config.name}: learning",
        checkpoints="checkpoints",
    )
    if is_sharded(network):
        network = whole_network(network, job.device)
    else:
        merge_lora(network)
    questions = frozenset(question_hash(problem.question) for problem in job.train)
    reward_model = RewardModel(job.run.reward_model, job.tokenizer, job.form, questions, network)
    problem_of = {problem.id: problem for problem in job.train}
    tally = job.process.tally(f"{job.run.reward_model}: calibrating")
    with job.progress.task(f"{config.name}: calibrating", len(held_out), tally) as advance:
        logits = reward_model.token_logits(
            [rollout.completion for rollout, _ in held_out],
            [problem_of[rollout.prompt.problem_id] for rollout, _ in held_out],
            with_boundary(advance),
            job.process,
        )
    pairs = [
        (logit, target)
        for (_, targets), of_tokens in zip(held_out, logits, strict=True)
        for logit, target in zip(of_tokens, targets, strict=True)
        if target is not None
    ]
    temperature, bias = calibrate(network, *map(np.array, zip(*pairs, strict=True)))
    job.log.log(
        steps,
        {
            f"{config.name}/calibration_temperature": temperature,
            f"{config.name}/calibration_bias": bias,
        },
    )
    job.process.first(reward_model.save)


def write_validation(job: Job, reward_model: RewardModel) -> None:
    """Judges the model on completions of the validation problems, which it has never seen.

    Writes verdicts.parquet and metrics.json to evaluation/validation.
    """
    rollouts = job.samples("validation")
    problem_of = {problem.id: problem for problem in job.validation}
    problems = [problem_of[rollout.prompt.problem_id] for rollout in rollouts]
    tally = job.process.tally(str(job.run.evaluation / VALIDATION))
    with job.progress.task("judging validation samples", len(rollouts), tally) as advance:
        probabilities = reward_model.token_probabilities(
            [rollout.completion for rollout in rollouts],
            problems,
            with_boundary(advance),
            job.process,
        )
    verdicts = [
        _verdict(job, *judged) for judged in zip(rollouts, problems, probabilities, strict=True)
    ]
    folder = job.run.evaluation / VALIDATION

    def write() -> None:
        write_table(folder / VERDICTS, pa.Table.from_pylist(verdicts, schema=VERDICT))
        write_estimates(
            validation_estimates(rollouts, job.validation, verdicts, job.grader), folder / METRICS
        )

    job.process.first(write)


def _verdict(
    job: Job, rollout: Rollout, problem: Problem, probabilities: np.ndarray
) -> dict[str, Any]:
    completion = rollout.completion
    verdict = {
        "problem_id": problem.id,
        "sample_index": completion.sample_index,
        "correct": rollout.correct,
        "probability": float(probabilities[-1]) if len(probabilities) else 0.0,
    }
    if not rollout.correct:
        verdict["first_wrong_step"] = first_wrong_step(completion.text, problem, job.grader)
        below = probabilities[step_tokens(job.tokenizer, completion, job.grader)] < 0.5
        verdict["predicted_first_wrong_step"] = (
            int(below.argmax()) if below.any() else max(len(below) - 1, 0)
        )
    return verdict


def validation_estimates(
    rollouts: Sequence[Rollout],
    problems: Sequence[Problem],
    verdicts: Sequence[dict[str, Any]],
    grader: Grader,
) -> dict[str, Estimate]:
    """The metrics of a reward model, with intervals over problems.

        accuracy            the share of completions that a threshold of 0.5 judges rightly
        auroc               the area under the ROC curve, over completions
        calibration_error   the expected calibration error, over completions
        first_wrong_step    the share of wrong completions whose first step with a probability below
                            0.5 is the one that ``dense.first_wrong_step`` names
        rerank@K, weighted_maj@K, maj@K, pass@K
                            what choosing among a problem's samples by the model achieves, beside
                            what voting and the best choice do

    auroc and calibration_error are left out if all completions are right, or all are wrong;
    first_wrong_step is left out if none is wrong.
    """
    rows = [list(of_problem) for _, of_problem in groupby(verdicts, key=lambda v: v["problem_id"])]
    labels = [np.array([v["correct"] for v in row]) for row in rows]
    final = [np.array([v["probability"] for v in row]) for row in rows]
    found = [
        np.array([v["predicted_first_wrong_step"] == v["first_wrong_step"] for v in wrong])
        for row in rows
        if (wrong := [v for v in row if v.get("first_wrong_step") is not None])
    ]
    evaluation = summarise(problems, [], rollouts, grader)
    scores = evaluation.scores | chosen_by_reward_model(rollouts, problems, np.concatenate(final))
    estimates = {
        "accuracy": estimate_mean(
            np.array([np.mean((p > 0.5) == y) for y, p in zip(labels, final, strict=True)])
        )
    }
    if len(np.unique(np.concatenate(labels))) == 2:
        estimates["auroc"] = estimate_auroc(labels, final)
        if (estimates["auroc"].low, estimates["auroc"].high) == (0.0, 1.0):
            logger.warning(
                "the AUROC has no interval but [0, 1]: too few of the validation problems have a "
                "right completion, or a wrong one; it takes %d of both",
                FEWEST_CLUSTERS,
            )
        estimates["calibration_error"] = bootstrap_clusters(
            expected_calibration_error, labels, final
        )
    if found:
        estimates["first_wrong_step"] = estimate_share(found)
    return estimates | {name: estimate_mean(values) for name, values in scores.items()}
