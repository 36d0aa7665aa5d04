"""What a plan checks of its model before anything is computed. It takes torch, and so seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from reasonrl.config.identity import training_set
from reasonrl.config.schema import TrainConfig
from reasonrl.grading.stops import decode
from reasonrl.learning.packed import find_layout
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.problems import learns_from_solutions, long_solutions
from reasonrl.policy.head import check_head
from reasonrl.policy.policy import (
    check_num_layers,
    config_of,
    context_of,
    load_tokenizer,
    num_layers_of,
)
from reasonrl.policy.twin import try_twin
from reasonrl.problems.prompts import Chat, build_prompts, check_lengths, form_of, label_ids
from reasonrl.reward_models.model import Description
from reasonrl.rewards import REWARDS, Materials
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.result import reward_model_of
from reasonrl.sampling.agreement import find_decoding
from reasonrl.types import Completion

Cached = Callable[[tuple[object, ...], Callable[[], Any]], Any]


class Checked(NamedTuple):
    """What a plan should say of its model."""

    warnings: list[str]
    reading: str  # how the model is read where that costs more than it might, else empty


def check_model(planned: Plan, cached: Cached) -> Checked:
    """Checks what depends on the model: layers, lengths, and a reward model's tokenizer.

    Raises UserError.

    cached: returns what a function returns, which it calls only once for each key.
    """
    config, base = planned.config, planned.base
    algorithm = config.algorithm
    data = (training_set(config), config.evaluation.split)
    reading: str = cached(
        ("architecture", base, algorithm.name, config.sampler.name),
        lambda: _check_architecture(base, config),
    )
    tokenizer = cached(("tokenizer", base), lambda: load_tokenizer(base))
    few_shot, longest = config.init.name == "pretrained", _longest(config, tokenizer)
    cached(
        ("prompts", base, *data, config.prompt, few_shot, longest),
        lambda: _check_prompts(planned, tokenizer, longest),
    )
    said: list[str] = []
    if learns_from_solutions(config):
        said += cached(
            ("solutions", base, data[0], config.prompt),
            lambda: [
                *long_solutions(planned, tokenizer, context_of(base)),
                *_rendered_otherwise(planned, tokenizer),
            ],
        )
    if layers := algorithm.layers():
        num_layers = cached(("layers", base), lambda: num_layers_of(base))
        for key, wanted in layers.items():
            check_num_layers(key, wanted, num_layers)
    reward_run = config.reward.finished_run()
    if algorithm.reads_reward != "nothing" and reward_run is not None:
        run = RunFolder(Path(reward_run))
        cached(("reward", base, *data, run), lambda: _check_reward_run(planned, tokenizer, run))
    if algorithm.reads_reward != "nothing" and config.reward.code is not None:
        cached(
            ("own reward", base, data[0], config.reward), lambda: _try_reward(planned, tokenizer)
        )
    return Checked(said, reading)


def _try_reward(planned: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if a reward of the user's own can't score the first reference solution."""
    problem = planned.train[0]
    (ids,) = form_of(planned.config).reference_ids([problem], tokenizer)
    text = decode(tokenizer, ids)
    completion = Completion(problem.id, 0, ids, [0.0] * len(ids), "eos", text)
    settings = planned.config.reward
    reward = REWARDS[settings.name](settings, Materials(tokenizer, planned.grader, None, None, 0))
    reward([completion], [problem])


def _check_reward_run(planned: Plan, tokenizer: PreTrainedTokenizerBase, run: RunFolder) -> None:
    """Raises UserError if a run's reward model mustn't be asked about this plan's policy."""
    model = Description.read(reward_model_of(run, "reward.run"))
    model.check_tokenizer(tokenizer)
    model.check_not_trained_on([*planned.validation, *planned.test])


def _check_architecture(base: str, config: TrainConfig) -> str:
    """Raises UserError if models of this architecture can't be read as the run reads its model.

    It is tried on a small twin; where there can be none, the model itself will show it. Returns how
    the model is read where that costs more than it might.
    """
    twin, algorithm = try_twin(config_of(base)), config.algorithm
    if twin is None:
        return ""
    said = []
    if config.sampler.is_tried and (why := find_decoding(twin).why_not_segments):
        said.append(f"each completion sampled holds its own copy of its prompt: {why}")
    if algorithm.footprint().samples == "while it learns":
        if not find_layout(twin).shares_prompts:
            said.append("in learning each completion is read with its own prompt")
    elif algorithm.makes == "reward model":
        check_head(twin)
    return "; ".join(said)


def _longest(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that may follow a prompt."""
    return config.algorithm.longest(
        config.dataset.max_new_tokens,
        lambda texts: [len(ids) for ids in label_ids(texts, tokenizer).values()],
    )


def _check_prompts(planned: Plan, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    form, context = form_of(planned.config), context_of(planned.base)
    exemplars = planned.exemplars if planned.config.init.name == "pretrained" else []
    for problems in (planned.train, planned.validation, planned.test):
        prompts = build_prompts(problems, tokenizer, form, exemplars)
        check_lengths(prompts, longest, context)


def _rendered_otherwise(planned: Plan, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """A warning if the chat template writes an answer elsewhere than behind its prompt."""
    form = form_of(planned.config)
    if isinstance(form, Chat) and not form.renders_answers(planned.train[0], tokenizer):
        yield (
            "the chat template of the model writes another prompt where an answer follows than "
            "where one is asked for. Solutions are learnt right behind the prompt that asks; see "
            "prompt.template_args, such as enable_thinking, if it opens a thought"
        )
