"""Makes things go wrong, once. Python imports it by itself at start, from PYTHONPATH.

REASONRL_FAULTS names a folder. A file there with a run's name holds what is to happen to it when it
has written its second checkpoint; the file "launcher" before which of its sbatch the launcher dies.
"""

import os
import signal
import sys
import time
from pathlib import Path

FAULTS = Path(os.environ.get("REASONRL_FAULTS", "/nowhere"))


def take_all_memory() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(50_000_000))
        time.sleep(0.01)


def overstay() -> None:
    """Deaf to the warning, until the time limit."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


def wait_to_be_told() -> None:
    """Busy, so that the test can do something to it; stays so until a signal interrupts it."""
    (FAULTS / f"{RUN}.waiting").touch()
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    told = []
    for number in before:
        signal.signal(number, lambda *args: told.append(args))
    while not told:
        time.sleep(0.05)
    for number, handler in before.items():
        signal.signal(number, handler)
        handler(*told[0])  # the run's own


def fail() -> None:
    raise RuntimeError("injected")


FAULT = {
    "exception": fail,
    "exit": lambda: sys.exit(4),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "memory": take_all_memory,
    "overstay": overstay,
    "wait": wait_to_be_told,
    "nothing": lambda: None,
}
RUN = ""
checkpoints = submissions = 0


def watch(event: str, arguments: tuple) -> None:
    if event == "os.rename" and "/step-" in str(arguments[1]):
        at_checkpoint(arguments)
    elif event == "subprocess.Popen" and arguments[0] == "sbatch":
        at_submission()


def at_submission() -> None:
    global submissions
    submissions += 1
    order = FAULTS / "launcher"
    if order.exists() and submissions == int(order.read_text()):
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def at_checkpoint(arguments: tuple) -> None:
    global RUN, checkpoints
    RUN = Path(arguments[1]).parents[2].name
    checkpoints += 1
    order = FAULTS / RUN
    if checkpoints == 2 and order.exists():
        kind = order.read_text()
        order.unlink()
        FAULT[kind]()


if FAULTS.is_dir():
    sys.addaudithook(watch)
