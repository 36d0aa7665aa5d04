"""The code that a sweep's jobs run with: a copy, so that later edits don't reach queued jobs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from reasonrl.atomic import atomic_folder, json_text
from reasonrl.provenance import PACKAGE, SNAPSHOT, code_changes, code_version


def snapshot(outputs: Path, package: Path = PACKAGE) -> Path:
    """``<outputs>/code/1a2b3c4d``: the package, the commit it is of, and its difference to that.

    Named by the SHA-256 of its files, and so made once for the same code; its time is that of its
    last use. It goes on the module search path of jobs.
    """
    files = sorted(f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    names = [file.relative_to(package.parent).as_posix() for file in files]
    digest = hashlib.sha256()
    for file, name in zip(files, names, strict=True):
        digest.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    folder = outputs / "code" / digest.hexdigest()[:8]
    if folder.exists():
        folder.touch()
    else:
        with atomic_folder(folder) as copy:
            for file, name in zip(files, names, strict=True):
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            (copy / SNAPSHOT).write_text(json_text(code_version(package)))
            if changes := code_changes(package):
                (copy / "changes.diff").write_bytes(changes)
    return folder
