"""Files and folders that exist whole or not at all, also after kill -9 or a power cut.

Everything is written under a temporary name beside its target, flushed to the disk and renamed. A
temporary's name starts with a dot and carries host and process id: readers skip it, and whoever
writes next in the same folder clears away those whose writer is dead.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reasonrl.util.errors import UserError

_TEMPORARY = re.compile(r"\..+~(?P<host>[^~]+)~(?P<pid>\d+)~[0-9a-f]{32}\.tmp")
# Whether a process of another host still lives can't be asked; after a day it is taken for dead.
_FOREIGN_LIFETIME = 24 * 3600.0

_FREE_SPACE = "Free some space there and run the same command again."
_REMEDIES = {errno.ENOSPC: _FREE_SPACE, errno.EDQUOT: _FREE_SPACE}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError (disk full, read-only, not permitted) into a one-line UserError."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Make it writable or choose another folder.")
        raise UserError(
            f"path={path} must be writable; got {error.strerror or error}. {remedy}"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes or replaces a file; creates its folder. On UserError the old content stays."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path.parent)
        temporary = _temporary(path)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file in UTF-8, as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes or replaces a JSON file in the format of ``json_text``, as ``write_bytes`` does."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The value as indented JSON.

    Floats round-trip exactly; NaN and Infinity are written as Python reads them. NumPy scalars and
    arrays become numbers and lists.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, default=_to_python) + "\n"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which becomes `path` once the block succeeds.

    If the block raises, `path` is as before. A folder already at `path` is replaced; only between
    those two renames does a kill leave neither. An OSError, in the block too, becomes a UserError.
    """
    temporary = begin_folder(path)
    try:
        with writing(path):
            yield temporary
        end_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def begin_folder(path: Path) -> Path:
    """Makes an empty folder beside `path`, which ``end_folder`` makes `path` once it is filled.

    Several processes may fill it; it counts as abandoned when the one that made it is dead.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path.parent)
        temporary = _temporary(path)
        temporary.mkdir()
    return temporary


def end_folder(temporary: Path, path: Path) -> None:
    """Flushes a filled folder to the disk and makes it `path`, see ``atomic_folder``.

    Its files may be read and written by those for whom the folder may: some libraries make theirs
    for their owner alone, whatever the umask.
    """
    with writing(path):
        mode = temporary.stat().st_mode & 0o666
        for folder, _, files in os.walk(temporary):
            for name in files:
                os.chmod(Path(folder, name), mode)
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if path.exists():
            remove_folder(path)
        os.rename(temporary, path)
        _fsync(path.parent)


def copy(source: Path, path: Path) -> None:
    """Makes `path` a copy of a file or folder, whole or not at all; it replaces one that is there.

    Where the file system allows, a folder's copy has the same files and takes no room. That is safe
    for files that are only ever replaced, as those in folders are here, and never written to.
    """
    if source.is_file():
        write_bytes(path, source.read_bytes())
        return
    with atomic_folder(path) as temporary:
        shutil.copytree(source, temporary, copy_function=_link_or_copy, dirs_exist_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that no reader ever sees half of it."""
    with writing(path):
        doomed = _temporary(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # such as on another file system, or one without links
        shutil.copy2(source, target)


def _temporary(path: Path) -> Path:
    name = f".{path.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex}.tmp"
    return path.with_name(name)


def _clear_abandoned(folder: Path) -> None:
    for entry in folder.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if match is None or not _is_abandoned(entry, match["host"], int(match["pid"])):
            continue
        # Another writer may be clearing the same leftover: all that matters is that it is gone.
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_abandoned(temporary: Path, host: str, pid: int) -> bool:
    try:
        if host != socket.gethostname():
            return time.time() - temporary.stat().st_mtime > _FOREIGN_LIFETIME
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except PermissionError:  # alive, another user's
        return False
    return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_python(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")
