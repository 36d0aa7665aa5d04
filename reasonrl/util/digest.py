"""Hashes of what is read: of values, of files and of folders. A large file is read for it once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

DIGITS = 16  # of a content: enough that two by chance never have the same
LARGE_BYTES = 64 * 2**20  # of smaller files no hash is kept
# A file that changes twice within a clock's tick keeps its time, so the hash of one that is younger
# than this isn't kept.
YOUNG_SECONDS = 2.0
SHA256_DIGITS = 64


def content_of_values(values: Any) -> str:
    """The content of plain values, as DIGITS hex digits. Raises TypeError for others."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def content_of_folder(folder: Path, patterns: Iterable[str]) -> str:
    """The content of a folder's own files of these names; where it lies doesn't count."""
    patterns = list(patterns)
    files = (
        f for f in folder.iterdir() if f.is_file() and any(fnmatch(f.name, p) for p in patterns)
    )
    return content_of_values({file.name: file_digest(file) for file in files})


def file_digest(file: Path) -> str:
    """The SHA-256 of a file, in hex digits. Raises UserError for a file that can't be read.

    That of a large file in the hub's cache is the file's own name there. That of any other large
    file is kept in the user's cache, by its path, size and times.
    """
    real = file.resolve()
    try:
        status = real.stat()
        if status.st_size < LARGE_BYTES:
            return _read(real)
        if real.parent.name == "blobs" and len(real.name) == SHA256_DIGITS:
            return real.name
        stamp = [str(real), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        kept = _cache() / f"{content_of_values(str(real))}.json"
        known = _known(kept, stamp)
        if known is None:
            logger.info("reading %s for its hash, once", file)
            known = _read(real)
            if time.time() - max(status.st_mtime, status.st_ctime) > YOUNG_SECONDS:
                _keep(kept, {"stamp": stamp, "sha256": known})
    except OSError as error:
        raise UserError(f"path={file} must be readable; got {error}.") from None
    return known


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonrl" / "sha256"


def _known(kept: Path, stamp: list[Any]) -> str | None:
    try:
        values = json.loads(kept.read_bytes())
        return str(values["sha256"]) if values["stamp"] == stamp else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(kept: Path, values: dict[str, Any]) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, values)
    except (OSError, UserError):  # such as a home that isn't writable: it is read again next time
        logger.debug("%s can't be written", kept)
