"""A rank that costs nothing, put in the place of ``reasonrl.pipeline.rank``: it counts and sleeps.

It is done when there is a file ``finish`` in its run's folder. Each rank writes there where it is
and from which step it has gone on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from reasonrl.runs.preemption import boundary
from reasonrl.runs.rank import as_rank
from reasonrl.util.atomic import write_json, write_text


def main(folder: Path) -> None:
    with as_rank() as process:
        saved, step = folder / "saved", 0

        def save() -> None:
            if process.is_main:
                write_text(saved, str(step))

        start = step = process.first(lambda: int(saved.read_text()) if saved.exists() else 0)
        where = {"size": process.size, "node": int(os.environ["SLURM_NODEID"]), "start": start}
        report = where | {"pid": os.getpid(), "restart": restarts()}
        write_json(folder / f"rank-{process.rank}.json", report)
        while not process.first((folder / "finish").exists):
            step += 1
            time.sleep(0.1)
            boundary(save, process=process)
        save()


def restarts() -> int:
    """How often the job was put back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
