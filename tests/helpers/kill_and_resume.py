"""Kills a run with SIGKILL at random moments, starts it again until it is done, and compares it
with one that was left alone.

    python -m tests.helpers.kill_and_resume --kills 10 --seed 0 -- [overrides of train.py]

With ``--signal USR2`` it is told to stop instead, by a signal that it listens to.

Exits with 1 if anything differs but times, processes and paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from reasonrl.runs.metrics_log import reproducible

ROOT = Path(__file__).parents[2]
# They say when, where and how often a run was started, not what came of it.
ABOUT_THE_PROCESS = re.compile(r"(status|submission|provenance)\.json|(train|rank-\d+)\.log")
# Who is killed: the process that was started, one of the ranks that it has started, or all of them.
VICTIMS = ("parent", "rank", "all")
LATE = 0.5  # seconds; so much later than a step of progress a kill comes at most
END_SECONDS = 60.0  # after a kill nobody is left by then; of two cores it may have but a part


def start(outputs: Path, overrides: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train.py", f"runtime.outputs={outputs}", *overrides]
    with open(log, "ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def run_to_the_end(outputs: Path, overrides: Sequence[str]) -> None:
    log = outputs.with_suffix(".log")
    process = start(outputs, overrides, log)
    if process.wait() != 0:
        raise RuntimeError(f"exit code {process.returncode}:\n{log.read_text()[-3000:]}")


def kill_again_and_again(
    outputs: Path,
    overrides: Sequence[str],
    *,
    kills: int,
    seed: int,
    whole: int,
    number: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """Kills a run as often as asked, while it lasts; returns who was killed, and what was newest.

    whole: how far it comes (``progress``). Each kill comes when it has come to a point drawn from
        this, and a moment later; or while its processes start, where they had come so far before.
    """
    rng = random.Random(seed)
    killed: list[str] = []
    log = outputs.with_suffix(".log")
    for point in sorted(rng.randrange(whole) for _ in range(kills)):
        process = start(outputs, overrides, log)
        if not _comes_to(point, process, outputs):
            break  # it was done before the last kill
        time.sleep(rng.uniform(0, LATE))
        victim = rng.choice(VICTIMS) if number == signal.SIGKILL else "parent"
        victim = _kill(process, victim, rng, number)
        killed.append(f"{victim}, at {progress(outputs)} of {whole}: {_newest(outputs)}")
        print(f"kill {len(killed)}: {killed[-1]}", flush=True)
    return killed


def _comes_to(point: int, process: subprocess.Popen[bytes], outputs: Path) -> bool:
    """Waits until the process works in a run, and runs have come so far; False if it ends before"""
    while process.poll() is None:
        owners = {json.loads(s.read_text())["pid"] for s in outputs.glob("runs/*/status.json")}
        if process.pid in owners and progress(outputs) >= point:
            return True
        time.sleep(0.01)
    return False


def _kill(
    process: subprocess.Popen[bytes], victim: str, rng: random.Random, number: signal.Signals
) -> str:
    """Kills one or all of a run's processes, waits until none is left, and returns who it was."""
    ranks = psutil.Process(process.pid).children()
    if victim == "rank" and ranks:
        place = rng.randrange(len(ranks))
        ranks[place].send_signal(number)
        victim = f"rank {place} of {len(ranks)}"
    else:
        process.send_signal(number)
        for rank in ranks if victim == "all" else []:
            rank.send_signal(number)
        victim = f"{victim if ranks else 'parent'} of {len(ranks)} ranks"
    process.wait(END_SECONDS)
    _, left = psutil.wait_procs(ranks, END_SECONDS)
    if left:
        raise RuntimeError(f"{left} outlived {victim}")
    return victim


def progress(outputs: Path) -> int:
    """How far the runs have come: how many files and lines of metrics have come of them."""
    count = 0
    for folder, folders, files in os.walk(outputs):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in ("work", "wandb")]
        count += len([f for f in files if not (ABOUT_THE_PROCESS.fullmatch(f) or f[0] == ".")])
        if "metrics.jsonl" in files:
            count += Path(folder, "metrics.jsonl").read_bytes().count(b"\n")
    return count


def _newest(outputs: Path) -> str:
    files = [p for p in outputs.rglob("*") if p.is_file()]
    results = [p for p in files if not ABOUT_THE_PROCESS.fullmatch(p.name)]
    return str(max(results, key=lambda p: p.stat().st_mtime_ns).relative_to(outputs))


def snapshot(outputs: Path) -> dict[Path, int]:
    """When each file was last modified."""
    return {p: p.stat().st_mtime_ns for p in outputs.rglob("*") if p.is_file()}


def results(outputs: Path) -> dict[str, bytes]:
    """All that runs left behind, but what tells of their processes; temporaries are hidden files.

    Metrics without what is measured, and paths without the folder of outputs.
    """
    return {str(path.relative_to(outputs)): _content(path, outputs) for path in _visible(outputs)}


def _visible(outputs: Path) -> Iterator[Path]:
    for path in sorted(outputs.rglob("*")):
        parts = path.relative_to(outputs).parts
        aside = any(part.startswith(".") or part == "wandb" for part in parts)
        if path.is_file() and not (aside or ABOUT_THE_PROCESS.fullmatch(path.name)):
            yield path


def _content(path: Path, outputs: Path) -> bytes:
    if path.name == "result.json":
        return path.read_bytes().replace(str(outputs).encode(), b"outputs")
    if path.name == "metrics.jsonl":
        return json.dumps(reproducible(path)).encode()
    return path.read_bytes()


def differences(one: Path, other: Path) -> list[str]:
    """The files that aren't the same, or not there, in both outputs."""
    a, b = results(one), results(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--signal", choices=("KILL", "USR2", "TERM"), default="KILL")
    parser.add_argument("overrides", nargs="*", help="of train.py")
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    straight, killed = folder / "straight", folder / "killed"
    run_to_the_end(straight, arguments.overrides)
    print(f"left alone: {straight}", flush=True)
    kill_again_and_again(
        killed,
        arguments.overrides,
        kills=arguments.kills,
        seed=arguments.seed,
        whole=progress(straight),
        number=signal.Signals[f"SIG{arguments.signal}"],
    )
    run_to_the_end(killed, arguments.overrides)
    different = differences(straight, killed)
    print(f"{len(results(straight))} files compared with {killed}, {len(different)} differ")
    for name in different:
        print(f"  {name}")
    return 1 if different else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
