"""A sweep as one HTML file that needs nothing else: no network, no server, no login.

page.html is its frame, page.css its looks and page.js all that it does; the data are in it as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from reasonrl.config.algorithm.base import VALIDATION
from reasonrl.report.run_data import RunData
from reasonrl.runs.provenance import differences

# A point takes some 25 bytes, and a browser still opens a file with so many at once.
MAX_POINTS = 1_000_000
MIN_POINTS_PER_LINE = 20


def page(
    title: str, command: str, created: str, made: str, runs: Sequence[RunData], note: str = ""
) -> str:
    """The text of the HTML file.

    It holds numbers as they are in the runs' files, to the last bit. Only if all curves together
    have more than a million points, the long ones are thinned (``Curve.thinned``), and the page
    says so.

    created, made: when the sweep was begun and when the page is made, in UTC, ISO 8601.
    note: what else readers should know of how the page was made.
    """
    limit = _points_per_line(runs)
    data = {
        "title": title,
        "command": command,
        "created": created,
        "made": made,
        "note": note,
        "validation": VALIDATION,
        "differences": differences({r.name: r.hardware for r in runs if r.overrides is not None}),
        "points_per_line": limit,
        "runs": [_thinned(run, limit) if limit else run for run in runs],
    }
    scripts = {"plotly": get_plotlyjs(), "script": _own(".js")}
    return Template(_own(".html")).substitute(
        title=html.escape(title),
        hashes=" ".join(_hash(script) for script in scripts.values()),
        style=_own(".css"),
        data=_json(data),
        **scripts,
    )


def _own(suffix: str) -> str:
    return Path(__file__).with_suffix(suffix).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The hash by which a browser knows that it may run a script; it runs no other in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """The data as JSON for a script element: without <, which in a completion could end it."""
    text = json.dumps(data, default=_fields, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _fields(value: object) -> dict[str, object]:
    """The fields of a dataclass, without the copies of a million points that ``asdict`` makes."""
    fields = dict(vars(value))
    if isinstance(value, RunData):
        fields["makes_policy"] = value.makes_policy
    return fields


def _points_per_line(runs: Sequence[RunData]) -> int | None:
    """The most points that a line may have; None if there is no limit."""
    lengths = [len(curve.values) for run in runs for curve in run.curves.values()]
    if sum(lengths) <= MAX_POINTS:
        return None
    return max(MIN_POINTS_PER_LINE, MAX_POINTS // len(lengths))


def _thinned(run: RunData, limit: int) -> RunData:
    return replace(run, curves={name: c.thinned(limit) for name, c in run.curves.items()})
