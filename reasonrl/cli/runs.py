"""The commands that list runs, compare any of them, and remove them.

What they do is in ``run_tables``, which takes a moment to import and needs no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reasonrl.cli.command import AddCommand, takes_outputs

FORMATS = ("table", "csv", "latex", "markdown", "json")
METRICS = ["maj@1"]
# Those of ``report.budget``, which is slower to import.
QUANTITIES = ("questions", "samples", "steps", "tokens")


def add_commands(add: AddCommand) -> None:
    runs = add("runs", what="list runs, with what differs between them", function=_runs)
    _takes_runs(runs, "all, if none")
    _takes_table(runs)

    compare = add(
        "compare", what="compare runs with the first, problem by problem", function=_compare
    )
    _takes_runs(compare, "or SWEEP; the first is what the others are compared with")
    _takes_table(compare)
    compare.add_argument(
        "--may-differ",
        nargs="+",
        choices=QUANTITIES,
        default=[],
        metavar="BUDGET",
        help="compare runs that weren't given as much: questions, samples, steps, tokens",
    )

    diff = add("diff", what="show in what two runs differ", function=_diff)
    diff.add_argument("one", metavar="RUN", help="its folder, or a part of its name")
    diff.add_argument("other", metavar="RUN")

    remove = add("remove", what="remove runs with all that is in their folders", function=_remove)
    _takes_runs(remove, "a part of each one's name")
    remove.add_argument("--yes", action="store_true", help="do it")
    for parser in (runs, compare, diff, remove):
        takes_outputs(parser)


def _takes_runs(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help=which)
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only those with these settings: algorithm=ei,ppo rounds!=2 state=done lora_rank=*",
    )


def _takes_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", action="store_true", help="put runs that differ in their seed alone in one row"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=METRICS,
        metavar="METRIC",
        help="maj@1, pass@K, …",
    )
    parser.add_argument("--protocol", help="of the evaluations, such as test-n500-k16-t0.7")
    parser.add_argument("--format", choices=FORMATS, default="table", help="table, by default")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the intervals, as .png, .svg or .pdf"
    )


def _runs(given: argparse.Namespace) -> int:
    from reasonrl.cli.run_tables import list_runs

    return list_runs(given)


def _compare(given: argparse.Namespace) -> int:
    from reasonrl.cli.run_tables import compare_runs

    return compare_runs(given)


def _diff(given: argparse.Namespace) -> int:
    from reasonrl.cli.run_tables import diff_runs

    return diff_runs(given)


def _remove(given: argparse.Namespace) -> int:
    from reasonrl.cli.run_tables import remove_runs

    return remove_runs(given)
