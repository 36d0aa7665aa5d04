"""What a terminal shows of a sweep.

Lines are put together by hand, because a rich table of 1,000 rows takes more than a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.overrides import readable_names
from reasonrl.sweep.said import tail
from reasonrl.sweep.slurm import SlurmError
from reasonrl.sweep.status import Finding, look
from reasonrl.sweep.verdict import ALIVE, UNFINISHED, Verdict, last_attempt
from reasonrl.util.progress import duration

COLOURS: dict[Verdict, str] = {
    "done": "green",
    "running": "cyan",
    "preempted": "yellow",
    "queued": "dim",
    "waiting": "dim",
    "to do": "dim",
    "blocked": "yellow",
    "cancelled": "yellow",
}
HEADS = ("run", "state", "Slurm", "attempt", "progress", "took", "left", "last metric", "why")
RIGHT = {"attempt", "took", "left"}
GAP = "  "
WATCH_SECONDS = 5.0
SILENT_SECONDS = 600.0
LOG_LINES = 5  # of the log of each failed run, below the table
LOGS = 5  # the logs of so many failed runs are shown

# The states that Slurm should say, by verdict.
_EXPECTED: dict[Verdict, tuple[str, ...]] = {
    "done": ("COMPLETED",),
    "running": ("RUNNING",),
    "queued": ("PENDING",),
    "waiting": ("PENDING",),
    "preempted": ("PENDING",),
    "failed": ("FAILED",),
    "crashed": ("FAILED",),
    "out of memory": ("OUT_OF_MEMORY",),
    "timed out": ("TIMEOUT",),
    "node failure": ("NODE_FAIL",),
    "cancelled": ("CANCELLED",),
    "blocked": ("CANCELLED",),
}


def status_table(
    title: str, findings: Sequence[Finding], *, logs: bool = True, width: int | None = None
) -> Text:
    """A line for each run, then the counts, then the ends of the failed runs' logs.

    Columns with nothing in them are left out.

    width: of the terminal; a row has as many lines as it needs, and no cell is parted.
    """
    names = readable_names([finding.member for finding in findings])
    rows = [_row(finding, names) for finding in findings]
    head, *lines = aligned(HEADS, rows, width)
    text = Text.assemble((f"{title}\n", "bold"), (head + "\n", "underline"))
    first = max(map(len, ("run", *names.values())))
    colours = [_colour(finding.verdict) for finding in findings]
    for line, row, colour in zip(lines, rows, colours, strict=True):
        start = len(text) + first + len(GAP)
        text.append(line + "\n")
        text.stylize(colour, start, start + len(row[1]))
    text.append(f"\n{summary(findings)}\n", "bold")
    return text.append_text(_logs(findings, names)) if logs else text


def watch(sweep: Sweep, console: Console) -> list[Finding]:
    """Shows the table, again and again, until no run is alive; returns the last findings.

    A controller that doesn't answer is asked again. Raises SlurmError if it has been silent for
    SILENT_SECONDS.
    """
    from rich.live import Live

    answered = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                findings = look(sweep)
            except SlurmError as error:
                if time.monotonic() - answered > SILENT_SECONDS:
                    raise
                live.update(Text(f"{error} It will be asked again.", "yellow"), refresh=True)
            else:
                answered = time.monotonic()
                if not any(finding.verdict in ALIVE for finding in findings):
                    return findings
                table = status_table(sweep.name, findings, logs=False, width=width_of(console))
                live.update(table, refresh=True)
            time.sleep(WATCH_SECONDS)


def _row(finding: Finding, names: dict[str, str]) -> tuple[str, ...]:
    return (
        names[finding.member.name],
        finding.verdict,
        _disagreement(finding),
        str(finding.status.attempt) if finding.status else "",
        finding.progress,
        duration(finding.seconds),
        duration(finding.seconds_left),
        finding.metric,
        _shortened(finding.reason, names),
    )


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The heads and the rows as lines with their cells one below the other.

    Columns with nothing in them are left out. A row has as many lines as it needs, and no cell is
    parted, so that names can be copied.

    width: of the terminal; None: a line has no end.
    """
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    widths = [max(w, len(head)) if w else 0 for w, head in zip(widths, heads, strict=True)]
    return [_line(heads, cells, widths, width) for cells in (heads, *rows)]


def _line(
    heads: Sequence[str], cells: Sequence[str], widths: Sequence[int], width: int | None
) -> str:
    padded = zip(heads, cells, widths, strict=True)
    first, *shown = [c.rjust(w) if head in RIGHT else c.ljust(w) for head, c, w in padded if w]
    lines = [first]
    for cell in shown:
        longer = lines[-1] + GAP + cell
        if width is None or len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(2 * GAP + cell)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def width_of(console: Console) -> int | None:
    """The width of a terminal; None for what is no terminal, where lines have no end."""
    return console.width if console.is_terminal else None


def summary(findings: Sequence[Finding]) -> str:
    """``12 runs: 9 done, 2 running, 1 failed``."""
    count = Counter(finding.verdict for finding in findings)
    order: tuple[Verdict, ...] = ("done", *ALIVE, *UNFINISHED)
    counts = ", ".join(f"{count[verdict]} {verdict}" for verdict in order if count[verdict])
    return f"{len(findings)} {'run' if len(findings) == 1 else 'runs'}: {counts}"


def graph(findings: Sequence[Finding]) -> Tree:
    """A tree with each run below the last of those it needs; it names the others that it needs."""
    names = readable_names([finding.member for finding in findings])
    root = Tree("needed first", hide_root=True)
    branches: dict[str, Tree] = {}
    for finding in findings:
        *others, last = [*finding.member.needs] or [""]
        style = _colour(finding.verdict)
        label = f"{escape(names[finding.member.name])} [{style}]{finding.verdict}[/]"
        if others:
            label += f" [dim](needs also {escape(', '.join(names[other] for other in others))})[/]"
        branches[finding.member.name] = branches.get(last, root).add(label)
    return root


def _colour(verdict: Verdict) -> str:
    return COLOURS.get(verdict, "red")


def _disagreement(finding: Finding) -> str:
    """Slurm's state of the job, only where it isn't what the verdict leads one to expect."""
    if finding.slurm is None or finding.slurm in _EXPECTED.get(finding.verdict, ()):
        return ""
    return finding.slurm


def _shortened(text: str, names: dict[str, str]) -> str:
    if text.startswith("needs "):
        return "needs " + ", ".join(names[name] for name in text[len("needs ") :].split(", "))
    return text


def _logs(findings: Sequence[Finding], names: dict[str, str]) -> Text:
    """The ends of the logs of runs that went wrong by themselves."""
    bad = [r for r in findings if _colour(r.verdict) == "red"]
    shown = Text()
    for finding in bad[:LOGS]:
        shown.append(f"\n{names[finding.member.name]}: {finding.log or finding.run.log}\n", "bold")
        text = last_attempt(tail(finding.log or finding.run.log, 4096))
        for line in text.rstrip().splitlines()[-LOG_LINES:] or ["(nothing)"]:
            shown.append(f"  {line}\n")
    if len(bad) > LOGS:
        shown.append(f"\nand {len(bad) - LOGS} more that went wrong: logs RUN\n")
    return shown
