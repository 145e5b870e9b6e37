"""The console script ``cnn-search``: finds the command that its first word names."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from search.cli import command as cli
from search.errors import ConfigError
from search.process import home
from search.process.leaving import leave_after

COMMANDS = {
    "run": "searches compressions of a network for the front of accuracy against latency",
    "pick": "lists a study's front, and makes a bundle of one of its points",
    "explain": "says where the time of a trial's model goes",
    "device": "shows what is fast on a device",
    "sync": "logs what MLflow missed while it did not answer",
    "ui": "shows the searches of a folder in a browser",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``cnn-search`` and returns its exit status."""
    return cli.reported(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        print(_help(), end="")
        return 0 if words else cli.USAGE_ERROR
    if words[0] == "--version":
        print(cli.version_line())
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(
            f"{words[0]}: there is no such command{hint}; give one of {', '.join(COMMANDS)}"
        )
    status: int = importlib.import_module(f"{home.NAME}.{words[0]}").main(words[1:])
    return status


def _help() -> str:
    listed = "".join(f"  {name:<9}{purpose}\n" for name, purpose in COMMANDS.items())
    return (
        f"{home.SCRIPT} COMMAND [key=value ...]\n\n{listed}\n"
        f"{home.SCRIPT} COMMAND --help shows what a command takes, {home.SCRIPT} --version which "
        "version this is.\n"
    )


def script() -> NoReturn:
    """What the script ``cnn-search`` calls: ends the process with the command's status."""
    leave_after(main)


if __name__ == "__main__":
    script()
