"""A model that the command line names by its path alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reasonrl.config.model import DEFAULT_RESOURCES

CHOOSE_A_MODEL = {"model", "experiment"}  # groups whose option says what the model is called


def named_by_path(model: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The model's settings, of which none is another model's.

    Where ``overrides`` set model.path and choose no option of the group, the settings beside it are
    those of the default model: the name then becomes the path's last part, the resources become
    those of a model of which nothing is known, and the sizes are left to its config.json, unless
    the overrides set them too.
    """
    said = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if "model.path" not in said or said & CHOOSE_A_MODEL:
        return model
    own = dict(model)
    if "model.name" not in said:
        own["name"] = re.sub(r"[^A-Za-z0-9._]+", "-", Path(str(model["path"])).resolve().name)
    if "model.num_parameters" not in said:
        own["num_parameters"] = None
    if not any(key.startswith("model.shape") for key in said):
        own.pop("shape", None)
    if "model.resources" not in said:
        resources = {
            key: value
            for key, value in model["resources"].items()
            if f"model.resources.{key}" in said
        }
        own["resources"] = {**asdict(DEFAULT_RESOURCES), **resources}
    return own
