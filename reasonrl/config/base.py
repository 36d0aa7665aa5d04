"""What all settings share.

There are checks, whose errors name a key and a remedy, and marks of fields, which say how a field
counts in a run's identity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from reasonrl.util.errors import UserError

# Marks for a field's metadata, which say how it counts in an identity. An unmarked one counts.
IMMATERIAL = {"immaterial": True}  # no result depends on it
LATER = {"later": True}  # older runs haven't the field: at its default it doesn't count
# The field holds a hash that a plan finds out; at its default, None, it doesn't count.
CONTENT = {"content": True}
RUN_NAME = {"run name": True}  # the field holds a run's folder, of which only the name counts


def unless(other: str) -> dict[str, str]:
    """The mark of a field that nothing depends on where the field ``other`` is set."""
    return {"unless": other}


def decisive_values(settings: Any, *, defaults: bool = False) -> dict[str, Any]:
    """The plain values of a settings object that decide a result, by the marks of its fields.

    defaults: whether a field that older runs haven't is there at its default too.
    """
    values = {}
    for field in dataclasses.fields(settings):
        value, marks = getattr(settings, field.name), field.metadata
        is_later = marks in (LATER, CONTENT) and value == field.default
        if marks == IMMATERIAL or (is_later and not defaults):
            continue
        if "unless" in marks and getattr(settings, marks["unless"]) is not None:
            value = None
        elif marks == RUN_NAME and value is not None:
            value = Path(value).name
        elif dataclasses.is_dataclass(value):
            value = decisive_values(value, defaults=defaults)
        values[field.name] = value
    return values


def is_immaterial(settings: Any, key: str) -> bool:
    """Whether no result depends on a settings object's field, or on what the field is part of.

    key: the field's name, or the names of fields on the way to it, as ``resources.gpus``.
    """
    for name in key.split("."):
        found = [field for field in dataclasses.fields(settings) if field.name == name]
        if not found or found[0].metadata == IMMATERIAL:
            return bool(found)
        settings = getattr(settings, name)
        if not dataclasses.is_dataclass(settings):
            break
    return False


def require(holds: bool, message: str) -> None:
    """Raises UserError with the message unless the rule holds."""
    if not holds:
        raise UserError(message)


def require_one_of(key: str, value: str, options: Collection[str]) -> None:
    """Raises UserError unless the value is one of the options, which the error lists."""
    require(value in options, f"{key} must be one of {', '.join(options)}; got {key}={value}.")


def require_name(key: str, value: str) -> None:
    """Raises UserError unless the value may be a part of a folder's name."""
    safe = re.sub(r"[^\w.+-]+", "-", value.rpartition("/")[2]).strip("-.") or "mine"
    require(
        re.fullmatch(r"\w[\w.+-]*", value) is not None,
        f"{key}={value} must have letters, digits and . + - _ alone, for folders are named by it. "
        f"Pass {key}={safe}.",
    )


def counted(number: int, unit: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def check_listed(kind: str, declared: Collection[str], at_work: Collection[str]) -> None:
    """Raises TypeError, at import, for an option that only one of its two tables lists."""
    for name in sorted({*declared} ^ {*at_work}):
        missing = "a declaration" if name in at_work else "its work"
        raise TypeError(f"{kind} {name} must be listed in both tables; {missing} is missing")


def undeclared(cls: type, base: type, names: Collection[str]) -> list[str]:
    """The names that neither ``cls`` nor any class between it and ``base`` declares, in order."""
    between = [c for c in cls.__mro__ if issubclass(c, base) and c is not base]
    return [name for name in names if not any(name in vars(c) for c in between)]
