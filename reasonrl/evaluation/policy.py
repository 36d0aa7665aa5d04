"""The evaluation of a policy on problems; every sample is kept.

    maj@1            the accuracy of greedy decoding
    maj@K            the accuracy of the most frequent answer among K samples
    pass@k           the unbiased estimate, for every k up to K, of the probability that at least
                     one of k samples is right
    rerank@K         with a reward model, the accuracy of the sample that it finds most probably
                     right
    weighted_maj@K   with a reward model, the accuracy of the answer whose samples' probabilities
                     have the largest sum

K is the number of samples per problem, ``evaluation.num_samples_per_prompt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.config.schema import EvaluateConfig
from reasonrl.evaluation.summary import (
    METRICS,
    Evaluation,
    chosen_by_reward_model,
    summarise,
    write_estimates,
)
from reasonrl.grading import grader_of
from reasonrl.policy.policy import context_of, load_tokenizer
from reasonrl.problems.prompts import build_prompts, check_lengths, form_of
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.preemption import with_boundary
from reasonrl.runs.process import ALONE, Process
from reasonrl.runs.result import GREEDY, SAMPLES
from reasonrl.sampling import SamplingParams, open_engine
from reasonrl.sampling.rollouts import (
    collect_rollouts,
    read_rollouts,
    write_table,
)
from reasonrl.types import Problem, Prompt, Rollout, SavedPolicy
from reasonrl.util.atomic import writing
from reasonrl.util.digest import content_of_folder
from reasonrl.util.progress import Progress
from reasonrl.util.seeding import derive_seed

if TYPE_CHECKING:
    from reasonrl.reward_models.model import RewardModel


def evaluate(
    config: EvaluateConfig,
    policy: SavedPolicy,
    problems: Sequence[Problem],
    exemplars: Sequence[Problem],
    *,
    folder: Path,
    progress: Progress,
    description: str,
    reward_model: RewardModel | None = None,
    process: Process = ALONE,
) -> Evaluation:
    """Samples, grades and writes greedy.parquet, samples.parquet and metrics.json to ``folder``.

    An evaluation that is already there is read, and one that was interrupted is continued.

    exemplars: the examples of the few-shot prompt, which is used if the policy needs one.
    reward_model: chooses among the samples. Raises UserError if it reads other tokens than the
        policy writes, or was trained on one of the problems.
    process: this one of the processes that evaluate together.
    """
    dataset, evaluation = config.dataset, config.evaluation
    grader = grader_of(dataset)
    tokenizer = load_tokenizer(policy.path)
    if reward_model is not None:
        reward_model.check_tokenizer(tokenizer)
        reward_model.check_not_trained_on(problems)
    form = form_of(config)
    prompts = build_prompts(problems, tokenizer, form, exemplars if policy.few_shot else ())
    check_lengths(prompts, dataset.max_new_tokens, context_of(policy.path))
    finished = process.first((folder / METRICS).exists)
    if not finished:
        sampler = open_engine(policy.path, config, process.device(config.model.device))
        with writing(folder):  # a folder that can't be made is an error before the sampling
            folder.mkdir(parents=True, exist_ok=True)
        total = len(problems) * (1 + evaluation.num_samples_per_prompt)
        with progress.task(description, total, process.tally(str(folder))) as advance:
            for name, num_samples, temperature in (
                (GREEDY, 1, 0.0),
                (SAMPLES, evaluation.num_samples_per_prompt, evaluation.temperature),
            ):
                collect_rollouts(
                    sampler,
                    problems,
                    prompts,
                    SamplingParams(
                        num_samples,
                        temperature,
                        dataset.max_new_tokens,
                        tuple(dataset.stop),
                        policy.step_label,
                        grader.step_delimiter,
                        (form.end_token(tokenizer),),
                    ),
                    Outcome(grader),
                    grader,
                    seed=derive_seed(config.seed, "evaluation", name),
                    file=folder / name,
                    on_progress=advance,
                    process=process,
                )
    greedy, samples = read_evaluation(folder, prompts)
    measured = summarise(problems, greedy, samples, grader)
    if not finished:
        process.first(
            lambda: write_estimates(
                measured.estimates(),
                folder / METRICS,
                problems=len(problems),
                statistics=measured.statistics,
            )
        )
    if reward_model is not None:
        chosen = _choose(samples, problems, reward_model, folder, progress, process)
        measured = replace(measured, scores=measured.scores | chosen)
    return measured


def _choose(
    samples: Sequence[Rollout],
    problems: Sequence[Problem],
    model: RewardModel,
    folder: Path,
    progress: Progress,
    process: Process,
) -> dict[str, np.ndarray]:
    """``chosen_by_reward_model``, with the model's probabilities, kept in rerank-RUN-HASH.parquet.

    The hash is of the reward model, for another run's folder may have the same name. Each process
    judges a piece of the samples.
    """
    content = process.first(lambda: content_of_folder(model.folder, ["*.json", "*.safetensors"]))
    file = folder / f"rerank-{model.folder.resolve().parent.name}-{content[:8]}.parquet"
    if not process.first(file.exists):
        problem_of = {problem.id: problem for problem in problems}
        with progress.task("judging samples", len(samples), process.tally(str(file))) as advance:
            probabilities = model.final(
                [r.completion for r in samples],
                [problem_of[r.completion.problem_id] for r in samples],
                with_boundary(advance),
                process,
            )
        rows = {
            "problem_id": [r.completion.problem_id for r in samples],
            "sample_index": [r.completion.sample_index for r in samples],
            "probability": probabilities,
        }
        process.first(lambda: write_table(file, pa.table(rows)))
    probabilities = pq.read_table(file, columns=["probability"])["probability"].to_numpy()
    return chosen_by_reward_model(samples, problems, probabilities)


def read_evaluation(folder: Path, prompts: Sequence[Prompt]) -> tuple[list[Rollout], list[Rollout]]:
    """The greedy completions and the samples, which are the record; metrics.json is for people."""
    return read_rollouts(folder / GREEDY, prompts), read_rollouts(folder / SAMPLES, prompts)
