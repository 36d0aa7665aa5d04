"""From a composed config to dataclasses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.config.base import CONTENT, require, require_name
from reasonrl.config.dataset import DATASETS
from reasonrl.config.init import INITS, InitConfig
from reasonrl.config.model import ModelConfig
from reasonrl.config.own_model import named_by_path
from reasonrl.config.prompt import PROMPTS
from reasonrl.config.reward import REWARDS
from reasonrl.config.rules import validate, validate_evaluation
from reasonrl.config.sampler import SAMPLERS
from reasonrl.config.schema import EvaluateConfig, EvaluationConfig, RuntimeConfig, TrainConfig
from reasonrl.config.template import written_out
from reasonrl.config.tracking import TRACKERS
from reasonrl.util.errors import UserError

# Settings classes of each group, by the name of the option. Groups that take any name are below.
OPTIONS: dict[str, Mapping[str, type]] = {
    "init": dict.fromkeys(INITS, InitConfig),
    "algorithm": ALGORITHMS,
    "reward": REWARDS,
    "dataset": DATASETS,
    "prompt": PROMPTS,
    "sampler": SAMPLERS,
    "tracking": TRACKERS,
}
ANY_NAME: dict[str, type] = {
    "model": ModelConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
}
# Keys, in any group, of what may be a path.
PATHS = {"path", "outputs", "run", "reward_model", "predictions"}
# Keys that aren't settings.
OF_ENTRY_POINTS = {"scale", "dry_run", "run", "reward_model", "predictions", "grader", "format"}


def resolve(config: DictConfig, overrides: Sequence[str] = ()) -> TrainConfig:
    """A composed conf/train.yaml as dataclasses, validated. Raises UserError.

    overrides: what the command line said, as ``KEY=VALUE``.
    """
    splits = OmegaConf.select(config, "evaluation.split")
    if isinstance(splits, ListConfig):
        listed = ",".join(map(str, splits))
        raise UserError(
            f"evaluation.split must be one split: a run is judged by one protocol; got [{listed}]. "
            f"Afterwards python evaluate.py run=RUN 'evaluation.split=[{listed}]' judges by all."
        )
    resolved = TrainConfig(**_sections(config, TrainConfig, overrides))
    validate(resolved)
    return resolved


def resolve_evaluation(config: DictConfig, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """A composed conf/evaluate.yaml as dataclasses, validated. Raises UserError.

    overrides: what the command line said, as ``KEY=VALUE``.
    """
    resolved = EvaluateConfig(**_sections(config, EvaluateConfig, overrides))
    validate_evaluation(resolved)
    return resolved


def with_homes(values: Any) -> Any:
    """The plain values of a configuration, with the home folder where a path begins with ``~``.

    Raises UserError for a home that isn't there: the shell would have said so.
    """
    if not isinstance(values, dict):
        return values
    return {key: _path(key, v) if key in PATHS else with_homes(v) for key, v in values.items()}


def _path(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return with_homes(value)
    path = os.path.expanduser(value)
    require(not path.startswith("~"), f"{key}={value} must be a path; there is no such home.")
    return path


def _sections(
    config: DictConfig, schema: type[EvaluateConfig], overrides: Sequence[str]
) -> dict[str, Any]:
    plain = with_homes(OmegaConf.to_container(config, resolve=True))
    if plain.get("model"):
        plain["model"] = named_by_path(plain["model"], overrides)
    dataset = plain.get("dataset") or {}
    if isinstance(dataset.get("prompt"), str):
        dataset["prompt"] = written_out(dataset["prompt"])
    seed = plain.get("seed")
    require(
        isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0,
        f"seed must be a whole number, 0 or more; got seed={seed}.",
    )
    groups = [f for f in dataclasses.fields(schema) if f.name != "seed"]
    for key in {*plain} - {"seed", *(f.name for f in groups)} - OF_ENTRY_POINTS:
        raise UserError(f"{key} must be a known key. Remove it; got +{key}.")
    given = [f.name for f in groups if f.default is dataclasses.MISSING or f.name in plain]
    return {"seed": seed, **{name: _section(name, json.dumps(plain.get(name))) for name in given}}


@lru_cache(maxsize=1024)  # the configurations of a sweep have most of their groups in common
def _section(key: str, values: str) -> Any:
    """One config group, given as JSON, as its dataclass.

    Raises UserError for an unknown name, key or type.
    """
    node = OmegaConf.create({key: json.loads(values)})[key]
    if node is None:
        raise UserError(f"{key} must be set; got {key}=null.")
    schema = ANY_NAME.get(key)
    if schema is None:
        options = OPTIONS[key]
        named = "variant_of" if node.get("variant_of") else "name"
        if node.get(named) not in options:
            others = [name for name, one in options.items() if hasattr(one, "variant_of")]
            variant = f" A variant of {' or '.join(others)} has variant_of." if others else ""
            raise UserError(
                f"{key}.{named} must be one of {', '.join(options)}; got "
                f"{key}.{named}={node.get(named)}.{variant}"
            )
        if named == "variant_of":
            require_name(f"{key}.name", str(node.get("name") or ""))
        schema = options[node[named]]
    return _typed(schema, node, key)


def _typed(schema: type, node: DictConfig, key: str) -> Any:
    """The node as an instance of ``schema``. Raises UserError for an unknown or ill-typed key."""
    every = get_type_hints(schema)
    hints = {f.name: every[f.name] for f in dataclasses.fields(schema)}
    nested = {name: inner for name, hint in hints.items() if (inner := _dataclass_in(hint))}
    flat = dataclasses.make_dataclass(
        schema.__name__,
        [
            (f.name, hints[f.name], dataclasses.field(default=f.default))
            for f in dataclasses.fields(schema)
            if f.name not in nested
        ],
        kw_only=True,  # those of a base that have a default stand before others that have none
    )
    given = [name for name in node if not OmegaConf.is_missing(node, name)]
    values = {name: node[name] for name in given if name not in nested}
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(flat), values))
    except OmegaConfBaseException as error:
        if (name := str(error.key)) in values and name in hints:
            raise UserError(
                f"{key}.{name} must be {_wanted(hints[name])}; got {key}.{name}={values[name]}."
            ) from None
        known = ", ".join(f.name for f in dataclasses.fields(schema) if f.metadata != CONTENT)
        reason = str(error).splitlines()[0]
        full_key = f"{key}.{error.key}" if error.key else key
        raise UserError(f"{full_key}: {reason.rstrip('.')}. {key} has the keys {known}.") from None
    parts = {}
    default = {f.name: f.default for f in dataclasses.fields(schema)}
    for name, inner in nested.items():
        if name not in node and default[name] is not dataclasses.MISSING:
            continue
        part = node.get(name)
        if part is None and inner is hints[name]:
            raise UserError(f"{key}.{name} must be set; got {key}.{name}=null.")
        if part is not None and not isinstance(part, DictConfig):
            raise UserError(f"{key}.{name} must hold settings; got {key}.{name}={part}.")
        parts[name] = None if part is None else _typed(inner, part, f"{key}.{name}")
    return schema(**{f.name: getattr(typed, f.name) for f in dataclasses.fields(flat)}, **parts)


KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list, as [8] is",
    dict: "settings",
    NoneType: "null",
}


def _wanted(hint: Any) -> str:
    """What a value of this type hint is, for people."""
    options = [hint] if get_origin(hint) in KINDS else get_args(hint) or [hint]
    return " or ".join(KINDS[get_origin(option) or option] for option in options)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass X of a type hint ``X`` or ``X | None``; None where X is no dataclass."""
    options = [t for t in (hint, *get_args(hint)) if isinstance(t, type)]
    return next((t for t in options if dataclasses.is_dataclass(t)), None)
