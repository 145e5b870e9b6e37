"""Requests and answers, a line of JSON each."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

SCHEMA = 3
Message = dict[str, Any]
Handler = Callable[[Message], Message]


class Refused(Exception):  # noqa: N818 - the answer to a request, not a fault of this program
    """A request that cannot be answered; ``kind`` names the reason for the reader's code."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def serve(lines: Iterable[str], out: TextIO, handlers: dict[str, Handler]) -> None:
    """Answers each line of JSON with one, whatever goes wrong, until the lines end."""
    for line in lines:
        try:
            message = json.loads(line)
            handler = handlers.get(message["request"])
            if handler is None:
                raise Refused("Unknown", f"knows no request {message['request']!r}")
            reply = {"ok": True, **handler(message)}
        except Exception as error:  # the other side decides what a fault means
            text = " ".join(str(error).split())
            if isinstance(error, KeyError):
                text = f"the request lacks {text}"
            kind = getattr(error, "kind", type(error).__name__)
            reply = {"ok": False, "error": text or kind, "kind": kind}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def claim_stdout() -> TextIO:
    """Keeps standard output for replies; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def follow(stream: TextIO, at_end: Callable[[], None]) -> Iterator[str]:
    """Yields lines; calls ``at_end`` in its own thread when they end, whatever the reader does."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)
        at_end()

    threading.Thread(target=read, daemon=True).start()
    yield from iter(lines.get, None)
