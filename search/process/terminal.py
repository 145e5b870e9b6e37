"""Has output reach any terminal: what its encoding cannot write is replaced, not fatal."""

from __future__ import annotations

import codecs
import io
import sys

# One letter for one letter, because tables are as wide as they were laid out.
LOOKALIKES = {
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{EN DASH}": "-",
    "\N{RIGHTWARDS ARROW}": ">",
    "\N{PLUS-MINUS SIGN}": "~",
    "\N{MICRO SIGN}": "u",
    "\N{HORIZONTAL ELLIPSIS}": ".",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
}
NAME = "lookalikes"


def write_anything() -> None:
    """Has this process's output and errors written whatever the terminal's encoding."""
    codecs.register_error(NAME, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NAME)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(LOOKALIKES.get(letter, "?") for letter in letters), error.end
