"""A template that stands in a file."""

from __future__ import annotations

from pathlib import Path

from reasonrl.util.errors import UserError

FILE = "file:"


def written_out(template: str) -> str:
    """The template itself, of a text that is one or names its file, as ``file:prompt.txt``.

    What counts in an identity, and what a run keeps, is what the file holds by now. The newline at
    its end isn't part of the template. Raises UserError for a file that can't be read.
    """
    if not template.startswith(FILE):
        return template
    path = Path(template.removeprefix(FILE)).expanduser()
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = "it isn't UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(
            f"dataset.prompt={template} must name a text file with the template; got {path}: "
            f"{why}. Check the path."
        ) from None
