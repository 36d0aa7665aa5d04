"""The code that a sweep's jobs run with: a copy, so that later edits don't reach queued jobs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from reasonrl.runs.provenance import PACKAGE, SNAPSHOT, code_changes, code_version
from reasonrl.util.atomic import atomic_folder, json_text, writing


def snapshot(outputs: Path, package: Path = PACKAGE) -> Path:
    """Copies the package to ``<outputs>/code/1a2b3c4d``; returns that folder.

    It holds the package's commit and its difference to that, too. It is named by the SHA-256 of the
    package's files, so it is made only once for the same code, and its time is that of its last
    use. It goes on the module search path of jobs.
    """
    files = sorted(f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    # They are read only once, as somebody may be editing them.
    contents = {file.relative_to(package.parent).as_posix(): file.read_bytes() for file in files}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\n".encode() + hashlib.sha256(content).digest())
    folder = outputs / "code" / digest.hexdigest()[:8]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(outputs / ".code.lock"):  # another launcher may make the same copy
            if folder.exists():
                os.utime(folder)
            else:
                _write(contents, folder, package)
    return folder


def _write(contents: Mapping[str, bytes], folder: Path, package: Path) -> None:
    with atomic_folder(folder) as copy:
        for name, content in contents.items():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        (copy / SNAPSHOT).write_text(json_text(code_version(package)))
        if changes := code_changes(package):
            (copy / "changes.diff").write_bytes(changes)
