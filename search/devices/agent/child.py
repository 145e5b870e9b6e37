"""How a child begins: before anything is imported that may print, or take its time."""

from __future__ import annotations

import signal
import sys

from .messages import claim_stdout, serve


def main() -> None:
    """Serves one model until the supervisor closes the pipe."""
    out = claim_stdout()
    die_with_parent()
    from .session import Session

    session = Session()
    handlers = {
        "versions": session.versions,
        "open": session.open,
        "block": session.block,
        "single": session.single,
        "throughput": session.throughput,
        "operators": session.operators,
        "profile": session.profile,
        "predict": session.predict,
    }
    serve(sys.stdin, out, handlers)


def die_with_parent() -> None:
    """Has Linux kill this process when its parent ends, even inside a run that never returns.

    Elsewhere the end of its input stops it between two requests. Source: prctl(2).
    """
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
