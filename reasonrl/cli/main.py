"""The ``reasonrl`` command, which has all commands on many runs; its ``--help`` prints ABOUT."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reasonrl.cli import command, dashboard, runs, share, sweep

ABOUT = """\
Says what became of sweeps and runs, goes on with them, and shows them. The runs themselves are
made by python train.py and evaluated by python evaluate.py.

examples:
  reasonrl runs --where algorithm=ei         those runs, with what differs between them
  reasonrl runs --seeds --format latex       a table for a paper: means over seeds
  reasonrl compare 1a2b3c4d 5e6f7a8b         the second with the first, paired by problem
  reasonrl compare SWEEP                     all of a sweep with its first run
  reasonrl diff 1a2b3c4d 5e6f7a8b            in what their settings differ
  reasonrl remove --where state=failed       what would be removed
  reasonrl status                            of the newest sweep; NAME: of another
  reasonrl status --watch                    until all its runs have ended
  reasonrl logs ppo-dense-7b                 what a run printed
  reasonrl logs learning_rate=1e-3           the run of the newest sweep with it
  reasonrl resubmit                          what would be submitted again
  reasonrl resubmit --state out-of-memory --memory-gb 120 --yes
  reasonrl cancel NAME ppo-dense-7b --yes    a run of a sweep; without a run, all of it
  reasonrl clean --failed --days 30          what could be removed
  reasonrl page                              a page of the newest sweep
  reasonrl mirror ppo-dense-7b               a run that was made without W&B
  reasonrl push --entity TEAM                a workspace: algorithm x reward x size
  reasonrl share ppo-dense-7b TEAM/NAME      its policy, to the Hugging Face hub

SWEEP is a sweep's folder or its name in outputs/sweeps; without it, it is the newest. RUN is a
run's folder, its name or a part that only its name has, or a setting that only it has in the newest
sweep. What submits, cancels or deletes only
says what it would do, unless it gets --yes.

exit status:
  0    it is done; of status: no run has to be submitted again
  1    of status: a run has to be submitted again
  2    a mistake, said in one line
  130  Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what ``reasonrl`` is told on the command line; returns the exit status."""
    rooms = (runs, sweep, dashboard, share)
    groups = [room.add_commands for room in rooms]
    return command.run("reasonrl", ABOUT, groups, arguments)


if __name__ == "__main__":
    sys.exit(main())
