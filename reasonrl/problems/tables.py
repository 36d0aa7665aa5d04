"""The rows of a split, wherever they are: in a file, a folder, or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasonrl.problems.sources import Row, json_array, json_lines
from reasonrl.util.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    """The rows of a file, by its ending. Raises UserError with its place where it can't be read."""
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: must end in one of {', '.join(READERS)}. Convert it.")
    return reader(file)


def _existing(file: Path, key: str) -> Path:
    if not file.is_file():
        raise UserError(f"{key} must be the name of a file; there is no {file}.")
    return file


def _json(file: Path) -> list[Row]:
    with file.open("rb") as opened:
        is_array = opened.read(1024).lstrip()[:1] == b"["
    return json_array(file) if is_array else list(json_lines(file))


def _csv(file: Path) -> list[Row]:
    # Texts such as NA and None are answers like others.
    return _read(file, lambda d: d.Dataset.from_csv(str(file), keep_default_na=False))


def _parquet(file: Path) -> list[Row]:
    return _read(file, lambda d: d.Dataset.from_parquet(str(file)))


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": lambda file: list(json_lines(file)),
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}


def _read(file: Path, load: Callable[[Any], Any]) -> list[Row]:
    import datasets  # takes seconds to import, and most runs don't need it

    try:
        table = load(datasets)
    except Exception as error:  # the library raises its own kinds, pandas' and the OS's
        raise UserError(f"{file}: must be readable; got {_reason(error)}.") from None
    return _rows(table, str(file))


def _load_saved(folder: Path) -> Any:
    import datasets

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
    return _rows(loaded[wanted], f"{path} {wanted}") if wanted in loaded else None


def _rows(table: Any, source: str) -> list[Row]:
    return [Row(dict(row), f"{source}, row {i}") for i, row in enumerate(table, 1)]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
