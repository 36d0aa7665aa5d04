"""One of the processes that make a run together, started by the run's owner (``runs.ranks``).

    python -P -m reasonrl.pipeline.rank outputs/runs/NAME

Torch is imported only when signals are listened to.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reasonrl.runs.folder import RunFolder, read_config
from reasonrl.runs.rank import as_rank
from reasonrl.util.entry_point import set_up_logging
from reasonrl.util.progress import Progress


def main(folder: str) -> None:
    """Makes the run in this folder together with the other ranks."""
    set_up_logging()  # before transformers is imported
    with as_rank() as process:
        from reasonrl.pipeline.execute import make
        from reasonrl.pipeline.planner import plan

        planned = process.first(lambda: plan(read_config(RunFolder(Path(folder)))))
        make(planned, Progress(shown=process.is_main), process)


if __name__ == "__main__":
    main(sys.argv[1])
