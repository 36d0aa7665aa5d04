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
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# They say when, where and how often a run was started, not what came of it.
ABOUT_THE_PROCESS = {"status.json", "submission.json", "provenance.json", "train.log"}


def start(outputs: Path, overrides: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train.py", f"runtime.outputs={outputs}", *overrides]
    with open(log, "ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def wait_for_work(process: subprocess.Popen[bytes], outputs: Path) -> bool:
    """Until the process works in a run; False if it ended without."""
    while process.poll() is None:
        for status in outputs.glob("runs/*/status.json"):
            if json.loads(status.read_text())["pid"] == process.pid:
                return True
        time.sleep(0.02)
    return False


def run_straight(outputs: Path, overrides: Sequence[str]) -> float:
    """Seconds that the work itself took, without the start of the process."""
    process = start(outputs, overrides, outputs.with_suffix(".log"))
    wait_for_work(process, outputs)
    started = time.monotonic()
    _must_succeed(process, outputs)
    return time.monotonic() - started


def run_killed(
    outputs: Path,
    overrides: Sequence[str],
    *,
    kills: int,
    seed: int,
    seconds: float,
    number: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """Kills a run of ``seconds`` as often as asked, then lets it end; returns what it was doing."""
    rng = random.Random(seed)
    phases: list[str] = []
    log = outputs.with_suffix(".log")
    while len(phases) < kills:
        process = start(outputs, overrides, log)
        if not wait_for_work(process, outputs):
            break  # it was done before the last kill
        try:
            # So that the kills spread over the whole run, though some of the work is lost each time
            process.wait(rng.uniform(0, 2 * seconds / (kills + 1)))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait()
            phases.append(_newest(outputs))
            print(f"kill {len(phases)}: newest was {phases[-1]}", flush=True)
    _must_succeed(start(outputs, overrides, log), outputs)
    return phases


def _must_succeed(process: subprocess.Popen[bytes], outputs: Path) -> None:
    if process.wait() != 0:
        raise RuntimeError(
            f"exit code {process.returncode}:\n{outputs.with_suffix('.log').read_text()[-3000:]}"
        )


def _newest(outputs: Path) -> str:
    files = [p for p in outputs.rglob("*") if p.name != "status.json" and p.is_file()]
    return str(max(files, key=lambda p: p.stat().st_mtime_ns).relative_to(outputs))


def snapshot(outputs: Path) -> dict[Path, int]:
    """When each file was last modified."""
    return {p: p.stat().st_mtime_ns for p in outputs.rglob("*") if p.is_file()}


def results(outputs: Path) -> dict[str, bytes]:
    """All that runs left behind, but what tells of their processes; temporaries are hidden files.

    Metrics without those under ``time/``, and paths without the folder of outputs.
    """
    return {str(path.relative_to(outputs)): _content(path, outputs) for path in _visible(outputs)}


def _visible(outputs: Path) -> Iterator[Path]:
    for path in sorted(outputs.rglob("*")):
        parts = path.relative_to(outputs).parts
        aside = any(part.startswith(".") or part == "wandb" for part in parts)
        if path.is_file() and not aside and path.name not in ABOUT_THE_PROCESS:
            yield path


def _content(path: Path, outputs: Path) -> bytes:
    if path.name == "result.json":
        return path.read_bytes().replace(str(outputs).encode(), b"outputs")
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]
        return json.dumps(kept).encode()
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
    seconds = run_straight(straight, arguments.overrides)
    print(f"left alone: {seconds:.0f} s of work in {straight}", flush=True)
    run_killed(
        killed,
        arguments.overrides,
        kills=arguments.kills,
        seed=arguments.seed,
        seconds=seconds,
        number=signal.Signals[f"SIG{arguments.signal}"],
    )
    different = differences(straight, killed)
    print(f"{len(results(straight))} files compared with {killed}, {len(different)} differ")
    for name in different:
        print(f"  {name}")
    return 1 if different else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
