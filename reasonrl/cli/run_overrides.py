"""What a command says of a finished run's policy: each override is applied, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from reasonrl.config.base import is_immaterial
from reasonrl.config.schema import TrainConfig
from reasonrl.report.catalogue import text_of
from reasonrl.util.errors import UserError

OF_RUN = ("model", "dataset", "prompt")


def applied_to(
    trained: TrainConfig, stored: Any, said: DictConfig, overrides: Sequence[str]
) -> DictConfig:
    """The command's configuration with the run's model, dataset and seed.

    An override of theirs is applied where the run doesn't depend on it, such as dataset.test_size.
    Raises UserError for one with another value than the run has where it does.

    stored: the run's configuration as its folder has it; ``trained`` is the same, resolved.
    said: the command's whole configuration.
    overrides: what the command line said, as ``KEY=VALUE``.
    """
    own = said.copy()
    with open_dict(own):
        own.seed = stored.seed
        for group in OF_RUN:
            if group in stored:
                own[group] = stored[group].copy()
            else:  # an older run's, which has the default
                own[group] = asdict(getattr(trained, group))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        group, _, inner = key.partition(".")
        if key == "scale":
            _refuse(
                said, override, "left out: it says what a model is trained with, and the run is"
            )
        elif group == "seed" or group in OF_RUN:
            whole = f"{key}.name" if key in OF_RUN else key
            value, of_run = (OmegaConf.select(config, whole) for config in (said, own))
            if inner and is_immaterial(getattr(trained, group), inner):
                with open_dict(own):
                    OmegaConf.update(own, key, value, force_add=True)
            elif value != of_run:
                rule = f"the run's own, {text_of(of_run)}, with which its policy has learnt"
                _refuse(said, override, rule)
    return own


def _refuse(said: DictConfig, override: str, rule: str) -> None:
    raise UserError(
        f"{override} must be {rule}; got run={said.run}. Leave it out, or evaluate the policy as a "
        f"model of its own: model.path={said.run}/policy dataset.num_exemplars=0, with its dataset "
        "and all that you want of it."
    )
