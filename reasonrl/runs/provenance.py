"""Which code, packages and machine made a run, and where runs differ in them.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
# What an attempt used of its machine that decides the last bits of sums, and in time the samples.
HARDWARE = {"threads": "threads", "gpu": "GPU", "processes": "number of processes", "cpu": "CPU"}
# What it ran that decides what it does.
SOFTWARE = {"code": "code", "torch": "torch", "transformers": "transformers"}
MOST_NAMES = 3  # how many runs that are alike are named; more are only counted
SNAPSHOT = "code.json"  # the file beside a copy of the package with the version it is a copy of


def now() -> str:
    """The time: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_attempt(file: Path) -> None:
    """Adds this attempt to a run's provenance.json: ``{"attempts": [...]}``, oldest first.

    An attempt says with which code (commit, dirty, SHA-256 of the diff against it; null where the
    code isn't in a git repository), packages (null if absent), machine and command line it ran.
    `complete_attempt` adds what is known once the work begins.
    """
    attempt = {
        "started": now(),
        "command": sys.argv,
        **code_version(),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
    }
    write_json(file, {"attempts": [*_attempts(file), attempt]})


def complete_attempt(file: Path, *, threads: int, gpu: str | None, processes: int) -> None:
    """Adds to the last attempt what it uses of its machine.

    These are the threads that compute in each process, the name of the GPU or null, and the number
    of processes.
    """
    *earlier, last = _attempts(file)
    used = {"threads": threads, "gpu": gpu, "processes": processes}
    write_json(file, {"attempts": [*earlier, last | used]})


def first_start(file: Path) -> str | None:
    """When a run's first attempt began, as ``now`` has it; None if none has."""
    return next((attempt.get("started") for attempt in _attempts(file)), None)


def hardware(file: Path) -> dict[str, str]:
    """What is known of a run's HARDWARE, for people; several attempts may differ in it.

    Older attempts say less, and a run that was never started says nothing.
    """
    known: dict[str, list[str]] = {}
    for attempt in _attempts(file):
        for key in HARDWARE:
            if key in attempt:
                known.setdefault(key, []).append(str(attempt[key] or "none"))
    return {key: " and ".join(dict.fromkeys(values)) for key, values in known.items()}


def software(file: Path) -> dict[str, str]:
    """What is known of a run's SOFTWARE, as `hardware` has it of its machine.

    The code is its commit, and behind a plus the hash of the changes to it.
    """
    known: dict[str, list[str]] = {}
    for attempt in _attempts(file):
        if attempt.get("commit"):
            changes = attempt.get("diff_sha256")
            code = [attempt["commit"][:8], *([changes[:8]] if changes else [])]
            known.setdefault("code", []).append("+".join(code))
        for name, version in (attempt.get("packages") or {}).items():
            if name in SOFTWARE and version:
                known.setdefault(name, []).append(version)
    return {key: " and ".join(dict.fromkeys(values)) for key, values in known.items()}


def differences(runs: Mapping[str, Mapping[str, str]]) -> str:
    """Sentences on where runs, by their names, differ in `hardware` or `software`, or nothing.

    They read ``These runs were made with different threads (1: a; 2: b): …``. A run of which
    nothing is known differs from none.
    """
    said = [
        (HARDWARE, "the last bits, and so the samples, may differ for that alone."),
        (SOFTWARE, "what they do may differ for that alone."),
    ]
    return " ".join(
        f"These runs were made with different {', '.join(found)}: {what}"
        for words, what in said
        if (found := _different(runs, words))
    )


def _different(runs: Mapping[str, Mapping[str, str]], words: Mapping[str, str]) -> list[str]:
    found = []
    for key, word in words.items():
        groups: dict[str, list[str]] = {}
        for name, known in runs.items():
            if key in known:
                groups.setdefault(known[key], []).append(name)
        if len(groups) > 1:
            alike = "; ".join(f"{value}: {_listed(names)}" for value, names in groups.items())
            found.append(f"{word} ({alike})")
    return found


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """The commit of this code. A copy that a sweep runs with has the commit it was made of."""
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


def _attempts(file: Path) -> list[dict[str, Any]]:
    """The attempts in the file; [] if it is missing or damaged."""
    try:
        attempts: list[dict[str, Any]] = json.loads(file.read_bytes())["attempts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return attempts


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} runs" if len(names) > MOST_NAMES else ", ".join(names)


def _cpu() -> str:
    """The model of the processor, or its kind where the system tells no more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


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
