"""Rows of a dataset, from a local file or from the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from reasonrl.types import Problem
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a dataset."""

    values: dict[str, Any]
    place: str  # where it stands, for error messages

    def text(self, key: str) -> str:
        """A value as text, a number without an exponent.

        Raises UserError if it is missing or empty, or has parts, as a list has.
        """
        value = self.values.get(key)
        if isinstance(value, (list, tuple, dict)):
            raise UserError(
                f"{self.place}: {key} must be a text or a number; got a {type(value).__name__}."
            )
        if isinstance(value, float) and math.isfinite(value):
            return format(Decimal(repr(value)), "f")
        if value is None or not str(value).strip():
            raise UserError(f"{self.place}: {key} must be there and not empty.")
        return str(value)


def readable(problems: Sequence[Problem | None], what: str) -> list[Problem]:
    """Those that could be read, which is not None; the log says how many couldn't.

    what: whose problems they are, and what they lack: ``MATH have no readable answer``.
    """
    read = [problem for problem in problems if problem is not None]
    if left_out := len(problems) - len(read):
        logger.info("%d of %d problems of %s and are left out", left_out, len(problems), what)
    return read


def local_file(path: str, name: str) -> Path:
    file = Path(path) / name
    if not file.is_file():
        raise UserError(
            f"dataset.path={path} must be a folder that holds {name}; there is no {file}. "
            "Pass the right folder, or dataset.path=null to read from the Hugging Face hub."
        )
    return file


def _row(value: dict[str, Any], place: str) -> Row:
    """A row whose texts can all be encoded. Raises UserError if one can't.

    JSON may hold half of a surrogate pair, where a text was cut in the midst of a character.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(
            f"{place}: must be valid Unicode; got {half!a}, half of a character. Remove it."
        ) from None
    return Row(value, place)


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: must be JSON; {error.msg}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: must be a JSON object; got {type(value).__name__}.")
    return value


def json_lines(file: Path) -> Iterator[Row]:
    """The rows of a file with one JSON object a line. Raises UserError with file and line."""
    try:
        # splitlines would also split at U+2028 and other line ends that a JSON string may hold.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: must be readable as UTF-8 text; {error}.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{file}:{number}"
            yield _row(_parse(line, place), place)


def json_array(file: Path) -> list[Row]:
    """The rows of a file that is one JSON array of objects. Raises UserError with file and line."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: must be JSON; {error.msg}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: must be readable as UTF-8 text; {error}.") from None
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise UserError(f"{file}: must be a JSON array of objects.")
    return [_row(value, f"{file}, entry {i}") for i, value in enumerate(values, 1)]


def hub_rows(hub: str, split: str, config: str | None = None) -> list[Row]:
    """A split of a dataset on the Hugging Face hub (or of a local folder in the hub's layout)."""
    import datasets  # takes seconds to import, and most runs don't need it

    # Without a network the library tries again for half a minute.
    logger.info("reading %s of %s, from the Hugging Face hub or its cache", split, hub)
    try:
        rows = datasets.load_dataset(hub, config, split=split)
    except Exception as error:  # the library raises its own kinds, requests' and the OS's
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"dataset.hub={hub} must be a dataset the hub can serve; got {reason.rstrip('.')}. "
            "Without a network, pass dataset.path=FOLDER with its files, or dataset=stories."
        ) from None
    return [Row(dict(row), f"{hub} {split}, row {i}") for i, row in enumerate(rows)]
