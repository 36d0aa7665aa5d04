"""The rows of a split, wherever they are: in a file, a folder, or on the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasonrl.problems.sources import Row, json_array, json_lines
from reasonrl.util.errors import UserError

csv.field_size_limit(sys.maxsize)  # of a cell; a long solution may have more than its own 131,072

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
JSON_FORMS = "Write an array of objects, or an object in each line."
SAVED = ("dataset_info.json", "dataset_dict.json")  # in what ``save_to_disk`` has written


def rows_of(path: str, split: str, name: str | None, subset: str | None = None) -> list[Row] | None:
    """The rows of a split; None where there is no file of its own.

    path: a file, whose rows are those of the split train; a folder of files, or one that
        ``save_to_disk`` has written; or a dataset's id on the Hugging Face hub.
    name: the split's file, beside ``path`` or in it, or its name on the hub; None: a file or split
        of the split's own name, which needn't be there.
    subset: the configuration of a dataset on the hub.

    Raises UserError for what isn't there or can't be read.
    """
    place = Path(path)
    if place.is_file():
        if name is None:
            return rows_of_file(place) if split == "train" else None
        return rows_of_file(_existing(place.parent / name, f"dataset.files.{split}"))
    if place.is_dir():
        if any((place / saved).is_file() for saved in SAVED):
            return _rows_of_table(_load_saved(place), path, split, name)
        if name is not None:
            return rows_of_file(_existing(place / name, f"dataset.files.{split}"))
        found = [place / f"{split}{suffix}" for suffix in READERS]
        file = next((file for file in found if file.is_file()), None)
        return None if file is None else rows_of_file(file)
    if not HUB_ID.fullmatch(path):
        raise UserError(
            f"dataset.path={path} must be a file, a folder or a dataset's id on the Hugging Face "
            "hub; there is none. Pass an existing path."
        )
    return _rows_of_table(_load_hub(path, subset), path, split, name)


def rows_of_file(file: Path) -> list[Row]:
    """The rows of a file, by its ending.

    Raises UserError with its place where it can't be read or has no rows.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: must end in one of {', '.join(READERS)}. Convert it.")
    return _some(reader(file), str(file))


def _some(rows: list[Row], source: str) -> list[Row]:
    if not rows:
        raise UserError(f"{source}: must have rows; there are none.")
    return rows


def _existing(file: Path, key: str) -> Path:
    if not file.is_file():
        raise UserError(f"{key} must be the name of a file; there is no {file}.")
    return file


def _json(file: Path) -> list[Row]:
    """The rows of an array of objects, or of lines with an object each."""
    with file.open("rb") as opened:
        is_array = opened.read(1024).removeprefix(BOM_UTF8).lstrip()[:1] == b"["
    if is_array:
        return json_array(file)
    _refuse_object_around(file)
    try:
        return list(json_lines(file))
    except UserError as error:
        raise UserError(f"{error} {JSON_FORMS}") from None


def _refuse_object_around(file: Path) -> None:
    """Raises UserError if the whole file is one object with the rows in it, on any lines."""
    try:
        whole = json.loads(file.read_bytes())
    except ValueError:  # such as that of several lines
        return
    parts = list(whole.values()) if isinstance(whole, dict) else []
    are_tables = [isinstance(p, list) and p != [] and isinstance(p[0], dict) for p in parts]
    is_row = any(isinstance(part, str) for part in parts)
    by_key = parts != [] and all(isinstance(part, dict) for part in parts)
    if by_key or (any(are_tables) and not is_row):
        raise UserError(f"{file}: must be rows; got one object around them. {JSON_FORMS}")


def _csv(file: Path) -> list[Row]:
    """The rows of a table with a header. Cells are the texts that they are: 00501 is no number."""
    rows = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            header = reader.fieldnames or []
            if len({*header}) < len(header):
                raise UserError(f"{file}: must have columns of different names; got {header}.")
            if len(header) == 1 and (other := re.search("[;\t|]", header[0])):
                raise UserError(
                    f"{file}: must have commas between its cells; got the header {header[0]!r}. "
                    f"Replace {other[0]!r}, or convert the file to JSON lines."
                )
            for values in reader:
                place = f"{file}:{reader.line_num}"
                if None in values:
                    raise UserError(
                        f"{place}: must have {len(header)} cells, as the header has; got more. "
                        "Quote a cell with commas."
                    )
                rows.append(Row(values, place))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: must be readable as CSV in UTF-8; {error}.") from None
    return rows


def _parquet(file: Path) -> list[Row]:
    from pyarrow import parquet  # which not every run needs

    try:
        table = parquet.read_table(file).to_pylist()
    except Exception as error:  # pyarrow's own kinds, and the OS's
        raise UserError(f"{file}: must be readable; got {_reason(error)}.") from None
    return _rows(table, str(file))


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": lambda file: list(json_lines(file)),
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}


def _load_saved(folder: Path) -> Any:
    import datasets  # takes seconds to import, and most runs don't need it

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(
            f"dataset.path={folder} must be a folder that save_to_disk has written; got "
            f"{_reason(error)}."
        ) from None


def _load_hub(path: str, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, subset)
    except Exception as error:
        raise UserError(
            f"dataset.path={path} must be a file, a folder or a dataset that the hub can serve; "
            f"got {_reason(error)}."
        ) from None


def _rows_of_table(loaded: Any, path: str, split: str, name: str | None) -> list[Row] | None:
    """The rows of a split of what was loaded: a table, which is train's, or a table by split."""
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    if name is not None and name not in loaded:
        raise UserError(
            f"dataset.files.{split}={name} must be one of {', '.join(loaded)}; got "
            f"dataset.path={path}."
        )
    wanted = name or split
    if wanted not in loaded:
        return None
    source = f"{path} {wanted}"
    return _some(_rows(loaded[wanted], source), source)


def _rows(table: Any, source: str) -> list[Row]:
    return [Row(dict(row), f"{source}, row {i}") for i, row in enumerate(table, 1)]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
