"""A function in a file of the user's own, named as ``FILE.py:FUNCTION``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasonrl.util.digest import content_of_values, file_digest
from reasonrl.util.errors import UserError


def file_of(code: str) -> Path:
    """The file of a function."""
    return Path(code.rpartition(":")[0])


def content_of_function(code: str, key: str) -> str:
    """The content of a function: of all that its file holds, and its name.

    key: the setting that names it.

    Raises UserError if there is no such file.
    """
    file, _, name = code.rpartition(":")
    if not Path(file).is_file():
        raise UserError(f"{key}={code} must name a file; there is no {file}.")
    return content_of_values([name, file_digest(Path(file))])


def load_function(code: str, key: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """The function, once its file has been run.

    arguments: the names of the positional arguments that it must take.

    Raises UserError for a file that isn't Python's by its ending or fails as it is run, or that has
    no such function.
    """
    file, _, name = code.rpartition(":")
    module_name = f"own_code_{content_of_function(code, key)}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:  # which a file of another ending hasn't
        raise UserError(f"{key}={code} must name a Python file, FILE.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{key}={code} must be Python that runs; got {told(error, file)}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(
            f"{key}={code} must name a function of {file}; it has {', '.join(there) or 'none'}."
        )
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise UserError(
            f"{key}={code} must take {', '.join(arguments)}; got {name}"
            f"{inspect.signature(function)}."
        ) from None
    return function


def told(error: BaseException, file: str) -> str:
    """An error in a line, with the last place in the file that it came from."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
    if isinstance(error, SyntaxError):
        return text  # which names its line
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(file).absolute()]
    return f"{text}, in line {lines[-1]} of {file}" if lines else text
