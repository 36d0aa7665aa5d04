"""A sweep as one HTML file that needs nothing else: no network, no server, no login.

page.html is the frame, page.css its looks, page.js all that it does; the data are in it as JSON.
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

# Some 25 bytes each; a browser still opens that at once.
MAX_POINTS = 1_000_000
MIN_POINTS_PER_LINE = 20


def page(
    title: str, command: str, created: str, made: str, runs: Sequence[RunData], note: str = ""
) -> str:
    """The file's text.

    created, made: when the sweep was begun and when the page is made, UTC, ISO 8601. note: what
    else there is to know of how it was made.
    Numbers are in it as they are in the runs' files, to the last bit. Only if all curves together
    have more than a million points, the long ones are thinned (``Curve.thinned``), and the page
    says so.
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
    """By which a browser knows the scripts that it may run: nothing else in the page ever is."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """For a script element: without <, which could end it, be it in a completion."""
    text = json.dumps(data, default=_fields, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _fields(value: object) -> dict[str, object]:
    """Of a dataclass; ``asdict`` would copy a million points."""
    fields = dict(vars(value))
    if isinstance(value, RunData):
        fields["makes_policy"] = value.makes_policy
    return fields


def _points_per_line(runs: Sequence[RunData]) -> int | None:
    """The most that a line may have; None if that is no limit."""
    lengths = [len(curve.values) for run in runs for curve in run.curves.values()]
    if sum(lengths) <= MAX_POINTS:
        return None
    return max(MIN_POINTS_PER_LINE, MAX_POINTS // len(lengths))


def _thinned(run: RunData, limit: int) -> RunData:
    return replace(run, curves={name: c.thinned(limit) for name, c in run.curves.items()})
