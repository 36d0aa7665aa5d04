"""Checkpoints from which a training loop, killed at any moment, is continued bit for bit.

A checkpoint is a folder ``step-00000123`` of plain files; nothing in it is pickled:

    model.safetensors       the parameters that train, and the buffers; frozen parameters are those
                            that the model was loaded with
    optimizer.safetensors   the tensors of the optimizer's state
    buffer.safetensors      a batch that is being learnt from, if there is one
    rng.safetensors         torch's random state
    state.json              the rest of the optimizer's state, and the loop's own
    manifest.json           the SHA-256 of each of the others; it is written last

Processes in a group, over which model and optimizer are sharded, each write their own shards, in
files ``shard-00001-model-00001-of-00002.safetensors`` and so on in place of the first two. Their
tensors are ``model.NAME`` and ``optimizer.exp_avg.NAME``, by the parameter's name, and each file
says where its shards begin, as torch's distributed checkpoints do. Any number of processes goes on
from either form: to the bit as if never stopped if it is the number that saved, else but for
rounding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from reasonrl.policy.shards import check_sharded
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.atomic import begin_folder, end_folder, json_text, remove_folder, writing
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,})")
_SHARD = re.compile(r"shard-(\d+)-.+")  # with the number of the process that wrote it, from 1
# Torch's writer holds a whole file in memory, more than once; so a process writes several of these.
_FILE_BYTES = 2**30


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    process: Process = ALONE  # one of those that go on from it together

    def restore(self, model: nn.Module | None, optimizer: Optimizer | None) -> dict[str, Any]:
        """Loads weights, optimizer and torch's random state in place; returns the saved `state`.

        All processes call it together. Call it last before the loop continues: a random number
        drawn in between changes the run. Pass None for what the loop doesn't have at this point.

        Raises UserError if names, shapes or dtypes of the model or the optimizer's groups differ
        from the saved ones. It also raises UserError if nothing was saved for an argument that is
        passed: that would otherwise silently start afresh.
        """
        saved = json.loads((self.path / "state.json").read_bytes())
        if model is not None:
            self._restore_model(model)
        if optimizer is not None:
            self._restore_optimizer(optimizer, saved["optimizer"])
        _set_rng(load_file(self.path / "rng.safetensors"), self.process.rank)
        state: dict[str, Any] = saved["state"]
        return state

    def buffer(self) -> dict[str, Tensor]:
        """The tensors that were saved as ``buffer``; empty if none were."""
        path = self.path / "buffer.safetensors"
        return load_file(path) if path.exists() else {}

    def _restore_model(self, model: nn.Module) -> None:
        saved = _Saved(self.path)
        if not saved.model:
            raise self._lacks("model")
        targets = _training(model)
        for name in dict.fromkeys([*targets, *saved.model]):
            wanted = _describe(targets[name]) if name in targets else "no such tensor"
            found = saved.describe(saved.model[name]) if name in saved.model else "no such tensor"
            if wanted != found:
                raise UserError(
                    f"model.{name}={wanted} must equal the checkpoint's; "
                    f"got {self.path}: {found}. Use the model this run was started with."
                )
        saved.load({saved.model[name]: target for name, target in targets.items()})

    def _restore_optimizer(self, optimizer: Optimizer, scalars: dict[str, Any] | None) -> None:
        saved = _Saved(self.path)
        if scalars is None:
            raise self._lacks("optimizer")
        # A parameter's identifier is its number or its name; JSON's keys are strings.
        groups = [g | {"params": [str(i) for i in g["params"]]} for g in scalars["param_groups"]]
        sizes = [len(group["params"]) for group in groups]
        own = [group["params"] for group in optimizer.param_groups]
        if sizes != [len(parameters) for parameters in own]:
            raise UserError(
                f"optimizer must have the checkpoint's parameter groups; got {self.path}: groups "
                f"of {sizes} parameters. Use the optimizer this run was started with."
            )
        identifiers = chain.from_iterable(group["params"] for group in groups)
        parameters = dict(zip(identifiers, chain.from_iterable(own), strict=True))
        state = {identifier: dict(values) for identifier, values in scalars["state"].items()}
        targets: dict[str, Tensor] = {}
        for (identifier, key), name in saved.optimizer.items():
            target = saved.empty(name, like=parameters[identifier])
            state[identifier][key] = targets[name] = target
        saved.load(targets)
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _lacks(self, what: str) -> UserError:
        return UserError(
            f"checkpoint={self.path} must hold the {what}'s state; got none. "
            "Delete it to start over."
        )


class _Saved:
    """The tensors in a checkpoint's folder, of one process or of several, by what they are of."""

    def __init__(self, folder: Path) -> None:
        self._reader = dcp.HuggingFaceStorageReader(str(folder))
        metadata = self._reader.read_metadata()
        self._found: dict[str, Any] = metadata.state_dict_metadata
        self.model: dict[str, str] = {}  # the tensors' names in the folder, by their own
        self.optimizer: dict[tuple[str, str], str] = {}  # by the parameter's identifier, and key
        for index, stored in metadata.storage_data.items():
            name = index.fqn
            part = Path(stored.relative_path).stem
            if part == "model":
                self.model[name] = name
            elif part == "optimizer":
                identifier, _, key = name.partition(".")
                self.optimizer[identifier, key] = name
            elif _SHARD.match(part):
                part, _, rest = name.partition(".")
                if part == "model":
                    self.model[rest] = name
                else:
                    key, _, identifier = rest.partition(".")
                    self.optimizer[identifier, key] = name

    def describe(self, name: str) -> str:
        found = self._found[name]
        return _description(found.size, found.properties.dtype)

    def empty(self, name: str, like: Tensor) -> Tensor:
        """A tensor for the saved one of this name, sharded as ``like`` if it has that shape."""
        found = self._found[name]
        if found.size == like.shape:
            return torch.empty_like(like, dtype=found.properties.dtype, requires_grad=False)
        return torch.empty(found.size, dtype=found.properties.dtype)

    def load(self, targets: dict[str, Tensor]) -> None:
        """Loads tensors in place, by their names in the folder, each process its own shards."""
        with _first_failure(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch finds it strange that a process is alone
            dcp.load(targets, storage_reader=self._reader)


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay.

    Only the processes of one run at a time may use the folder. They call each method together.
    """

    def __init__(self, folder: Path, keep: int = 2, process: Process = ALONE) -> None:
        """Takes the folder, which need not exist.

        process: one of those that make the run together, over which models are sharded.
        """
        self.folder = folder
        self.keep = keep
        self.process = process

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

        buffer: the tensors of the batch that the loop is in the midst of, if it is in one. All
            processes have the same.
        state: the loop's position and whatever else it needs to continue, as JSON values. NumPy
            scalars and arrays come back as numbers and lists; floats come back exactly. It is the
            main process's that is saved.

        Checkpoints of later steps are removed too: they were found damaged, or their steps are
        being done over. Raises UserError in all processes if any can't write its part.
        """
        path, process = self.folder / f"step-{step:08d}", self.process
        folder = process.first(partial(begin_folder, path))
        try:
            with writing(path):
                scalars = (
                    _write_tensors(folder, model, optimizer)
                    if process.mesh is None
                    else _write_shards(folder, model, optimizer, process.size)
                )
            rng = _of_ranks(process.gather(_get_rng()))

            def end_own() -> dict[str, str]:
                with writing(path):
                    if process.is_main:
                        _save_tensors(rng, folder / "rng.safetensors")
                        if buffer:
                            _save_tensors(buffer, folder / "buffer.safetensors")
                        content = {"optimizer": scalars, "state": state}
                        (folder / "state.json").write_bytes(json_text(content).encode())
                    own = [f for f in sorted(folder.iterdir()) if _writer(f.name) == process.rank]
                    return {file.name: _sha256(file) for file in own}

            digests = process.each(end_own)

            def end() -> None:
                with writing(path):
                    content = dict(sorted(pair for own in digests for pair in own.items()))
                    (folder / "manifest.json").write_bytes(json_text(content).encode())
                end_folder(folder, path)
                self._prune(step)

            process.first(end)
        except BaseException:
            if process.is_main:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are passed over with a warning."""
        damaged: list[str] = []
        for step, path in self.process.first(self._steps).items():
            damage = self._damage(path)
            if damage is None:
                for skipped in damaged:
                    logger.warning("%s; using %s instead", skipped, path)
                return Checkpoint(path, step, self.process)
            damaged.append(f"{path} is damaged ({damage})")
        for skipped in damaged:
            logger.warning("%s; no intact checkpoint is left", skipped)
        return None

    def _prune(self, step: int) -> None:
        """Removes the checkpoints that the one of this step makes superfluous."""
        steps = self._steps()
        keep = [s for s in steps if s <= step][: self.keep]
        for superfluous in set(steps) - set(keep):
            remove_folder(steps[superfluous])

    def _steps(self) -> dict[int, Path]:
        """The folders by their step, the newest first."""
        if not self.folder.exists():
            return {}
        matches = ((_STEP.fullmatch(path.name), path) for path in self.folder.iterdir())
        found = {int(match[1]): path for match, path in matches if match}
        return dict(sorted(found.items(), reverse=True))

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint folder, None if nothing; each process reads its share."""
        damage, digests = self.process.first(partial(_manifest, path))
        own = _difference(path, self.process.shard(list(digests.items())))
        return next(filter(None, [damage, *self.process.gather(own)]), None)


def _writer(name: str) -> int:
    """The rank that writes the file of this name in a checkpoint."""
    shard = _SHARD.fullmatch(name)
    return int(shard[1]) - 1 if shard else 0


def _write_tensors(
    folder: Path, model: nn.Module | None, optimizer: Optimizer | None
) -> dict[str, Any] | None:
    """Writes the files of a process alone; returns the rest of the optimizer's state, as JSON."""
    if model is not None:
        _save_tensors(_training(model), folder / "model.safetensors")
    if optimizer is None:
        return None
    tensors, scalars = _flatten(optimizer)
    _save_tensors(tensors, folder / "optimizer.safetensors")
    return scalars


def _write_shards(
    folder: Path, model: nn.Module | None, optimizer: Optimizer | None, num_processes: int
) -> dict[str, Any] | None:
    """Writes and flushes a process's shards, as the others do theirs together.

    Returns the rest of the optimizer's state, as JSON. Raises the first error of any process.
    """
    tensors, scalars = {}, None
    if model is not None:
        check_sharded(model)
        tensors = {f"model.{name}": tensor for name, tensor in _training(model).items()}
    if optimizer is not None:
        assert model is not None, "the optimizer's state is named after the model's parameters"
        of_optimizer, scalars = _flatten_by_name(optimizer, model)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in of_optimizer.items()}
    if tensors:
        files = _files({name: tensor.nbytes // num_processes for name, tensor in tensors.items()})
        writer = dcp.HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
        with _first_failure():
            dcp.save(tensors, storage_writer=writer)
    return scalars


def _files(sizes: Mapping[str, int]) -> dict[str, int]:
    """The number of the file, from 1, that each tensor of so many bytes goes into."""
    ends = accumulate(sizes.values())
    return {name: 1 + end // _FILE_BYTES for name, end in zip(sizes, ends, strict=True)}


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raises what failed in a process instead of torch's list of all that failed."""
    try:
        yield
    except CheckpointException as failed:
        error, _ = failed.failures[min(failed.failures)]
        raise error from failed


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
    """The model's own tensors, not copies, by their names; of sharded ones the process's shards.

    Tied tensors are there once, under their first name, because safetensors holds no ties.
    """
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (name, tensor.detach()))
    return dict(unique.values())


def _describe(tensor: Tensor) -> str:
    return _description(tensor.shape, tensor.dtype)


def _description(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimizer's state into tensors named ``<parameter index>.<key>`` and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars = {}
    for index, values in state["state"].items():
        scalars[index] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        tensors |= {f"{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return tensors, {"state": scalars, "param_groups": state["param_groups"]}


def _flatten_by_name(
    optimizer: Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimizer's state into tensors named ``<key>.<parameter's name>`` and JSON.

    JSON holds step counts and other single numbers, which aren't sharded, and groups of names.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        name = names[parameter]
        numbers[name] = {}
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                tensors[f"{key}.{name}"] = value
            else:
                numbers[name][key] = value.item() if isinstance(value, Tensor) else value
    groups = [g | {"params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
    return tensors, {"state": numbers, "param_groups": groups}


def _of_ranks(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The random states of all ranks by name; those of rank 0 are named like a lone process's."""
    return {
        f"rank-{rank}.{name}" if rank else name: tensor
        for rank, state in enumerate(states)
        for name, tensor in state.items()
    }


def _get_rng() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_rng(states: dict[str, Tensor], rank: int) -> None:
    """Sets the random state to the one of this rank; to rank 0's if this rank saved none."""
    prefix = f"rank-{rank}." if f"rank-{rank}.cpu" in states else ""
    torch.set_rng_state(states[f"{prefix}cpu"])
    for name, state in states.items():
        if name.startswith(f"{prefix}cuda."):
            index = int(name.removeprefix(f"{prefix}cuda."))
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


def _manifest(path: Path) -> tuple[str | None, dict[str, str]]:
    """What is wrong with a checkpoint's manifest, None if nothing; and the manifest."""
    try:
        return None, dict(json.loads((path / "manifest.json").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}", {}


def _difference(path: Path, digests: Iterable[tuple[str, str]]) -> str | None:
    """What is wrong with these files of a checkpoint, None if nothing."""
    try:
        for name, digest in digests:
            if _sha256(path / name) != digest:
                return f"{name} differs from its manifest"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None
