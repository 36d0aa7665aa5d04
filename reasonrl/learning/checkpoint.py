"""Checkpoints from which a training loop, killed at any moment, is continued bit for bit.

A checkpoint is a folder ``step-00000123`` of plain files; nothing in it is pickled:

    model.safetensors       the parameters that train, and the buffers; frozen parameters are those
                            that the model was loaded with
    optimizer.safetensors   the tensors of the optimizer's state
    buffer.safetensors      a batch that is being learnt from, if there is one
    rng.safetensors         torch's random state
    state.json              the rest of the optimizer's state, and the loop's own
    manifest.json           the SHA-256 of each of the others; it is written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reasonrl.util.atomic import atomic_folder, json_text, remove_folder
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int

    def restore(self, model: nn.Module | None, optimizer: Optimizer | None) -> dict[str, Any]:
        """Loads weights, optimizer and torch's random state in place; returns the saved `state`.

        Call it last before the loop continues: a random number drawn in between changes the run.
        Pass None for what the loop doesn't have at this point. Raises UserError if names, shapes or
        dtypes of the model or the optimizer's groups differ from the saved ones. It also raises
        UserError if nothing was saved for an argument that is passed: that would otherwise silently
        start afresh.
        """
        saved = json.loads((self.path / "state.json").read_bytes())
        if model is not None:
            self._restore_model(model)
        if optimizer is not None:
            self._restore_optimizer(optimizer, saved["optimizer"])
        _set_rng(load_file(self.path / "rng.safetensors"))
        state: dict[str, Any] = saved["state"]
        return state

    def buffer(self) -> dict[str, Tensor]:
        """The tensors that were saved as ``buffer``; empty if none were."""
        path = self.path / "buffer.safetensors"
        return load_file(path) if path.exists() else {}

    def _restore_model(self, model: nn.Module) -> None:
        path = self._existing("model.safetensors")
        targets = _training(model)
        with safe_open(path, framework="pt") as file:
            saved = {name: _describe(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            for name in dict.fromkeys([*targets, *saved]):
                wanted = _describe(targets[name]) if name in targets else "no such tensor"
                found = saved.get(name, "no such tensor")
                if wanted != found:
                    raise UserError(
                        f"model.{name}={wanted} must equal the checkpoint's; "
                        f"got {path}: {found}. Use the model this run was started with."
                    )
            for name, target in targets.items():
                target.copy_(file.get_tensor(name))

    def _restore_optimizer(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        path = self._existing("optimizer.safetensors")
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["state"].items()}
        for name, tensor in load_file(path).items():
            index, _, key = name.partition(".")
            # It is copied, because the loaded tensor is a view of a file that pruning will delete.
            state[int(index)][key] = tensor.clone()
        try:
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        except ValueError as error:
            raise UserError(
                f"optimizer must have the checkpoint's parameter groups; got {path}: {error}. "
                "Use the optimizer this run was started with."
            ) from error

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise UserError(
                f"checkpoint={self.path} must hold {name}; got none. Delete it to start over."
            )
        return path


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay.

    Only one process at a time may use the folder.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None,
        optimizer: Optimizer | None,
        state: dict[str, Any],
        buffer: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes a checkpoint, whole or not at all, and then removes those it makes superfluous.

        buffer: the tensors of the batch that the loop is in the midst of, if it is in one.
        state: the loop's position and whatever else it needs to continue, as JSON values. NumPy
            scalars and arrays come back as numbers and lists; floats come back exactly.

        Checkpoints of later steps are removed too: they were found damaged, or their steps are
        being done over. Raises UserError if the checkpoint can't be written.
        """
        with atomic_folder(self.folder / f"step-{step:08d}") as folder:
            if model is not None:
                _save_tensors(_training(model), folder / "model.safetensors")
            scalars = None
            if optimizer is not None:
                tensors, scalars = _flatten(optimizer)
                _save_tensors(tensors, folder / "optimizer.safetensors")
            if buffer:
                _save_tensors(buffer, folder / "buffer.safetensors")
            _save_tensors(_get_rng(), folder / "rng.safetensors")
            (folder / "state.json").write_bytes(
                json_text({"optimizer": scalars, "state": state}).encode()
            )
            digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
            (folder / "manifest.json").write_bytes(json_text(digests).encode())
        steps = self._steps()
        keep = [s for s in steps if s <= step][: self.keep]
        for superfluous in set(steps) - set(keep):
            remove_folder(steps[superfluous])

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are passed over with a warning."""
        damaged: list[str] = []
        for step, path in self._steps().items():
            damage = _damage(path)
            if damage is None:
                for skipped in damaged:
                    logger.warning("%s; using %s instead", skipped, path)
                return Checkpoint(path, step)
            damaged.append(f"{path} is damaged ({damage})")
        for skipped in damaged:
            logger.warning("%s; no intact checkpoint is left", skipped)
        return None

    def remove(self) -> None:
        """Deletes all checkpoints, once what they led up to is saved."""
        if self.folder.exists():
            remove_folder(self.folder)

    def _steps(self) -> dict[int, Path]:
        """The folders by their step, the newest first."""
        if not self.folder.exists():
            return {}
        matches = ((_STEP.fullmatch(path.name), path) for path in self.folder.iterdir())
        found = {int(match[1]): path for match, path in matches if match}
        return dict(sorted(found.items(), reverse=True))


def weights_hash(model: nn.Module) -> str:
    """The SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, by name.

    Tied tensors count once, under their first name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_untied(model).items()):
        digest.update(f"{name} {_describe(tensor)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _training(model: nn.Module) -> dict[str, Tensor]:
    """What ``_untied`` gives, without frozen parameters."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in _untied(model).items() if name not in frozen}


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors, not copies, by their names.

    Tied tensors are there once, under their first name, because safetensors holds no ties.
    """
    unique: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        unique.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), (name, tensor))
    return dict(unique.values())


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimizer's state into tensors named ``<parameter index>.<key>`` and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars = {}
    for index, values in state["state"].items():
        scalars[index] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        tensors |= {f"{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return tensors, {"state": scalars, "param_groups": state["param_groups"]}


def _get_rng() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_rng(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states.pop("cpu"))
    for name, state in states.items():
        index = int(name.removeprefix("cuda."))
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # safetensors has its own class for a full disk; here it is what the system said.
        raise OSError(str(error)) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, None if nothing."""
    try:
        digests = json.loads((path / "manifest.json").read_bytes())
        for name, digest in digests.items():
            if _sha256(path / name) != digest:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
