"""Which code, packages and machine made a run. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reasonrl.util.atomic import write_json

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
    "omegaconf",
    "accelerate",
    "vllm",
)
PACKAGE = Path(__file__).parents[1]
SNAPSHOT = "code.json"  # beside a copy of the package: the version that it is a copy of


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_attempt(file: Path) -> None:
    """Adds this attempt to a run's provenance.json: ``{"attempts": [...]}``, oldest first.

    An attempt says with which code (commit, dirty, SHA-256 of the diff against it; null where the
    code isn't in a git repository), packages (null if absent), machine and command line it ran.
    """
    try:
        attempts = json.loads(file.read_bytes())["attempts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        attempts = []
    attempt = {
        "started": now(),
        "command": sys.argv,
        **code_version(),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
    }
    write_json(file, {"attempts": [*attempts, attempt]})


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """The commit of this code, and of a copy that a sweep runs with, the commit it was made of."""
    snapshot = package.parent / SNAPSHOT
    if snapshot.exists():
        version: dict[str, Any] = json.loads(snapshot.read_bytes())
        return version
    # A copy of the code inside some other repository must not pass for that repository's commit.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain")
    diff = code_changes(package)
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": bool(changes),
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }


def code_changes(package: Path = PACKAGE) -> bytes | None:
    """The difference to the commit, as git prints it; None without git."""
    return _git(package, "diff", "--binary", "--full-index", "--no-ext-diff", "HEAD")


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
