"""The agent with the rule of protocol 2, to be compared with today's.

Both models of a round get the same number of runs, whatever each takes, timed as a whole by the
wall clock. Everything else is the agent's own. ``python equal_runs.py ARCHIVE`` serves as the
agent's archive itself would.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.path.insert(0, sys.argv[0])
    coordinator: Any = importlib.import_module("agent.coordinator")
    turns: Any = importlib.import_module("agent.turns")

    def share_runs(run_ms: Sequence[float], block_ms: float) -> Any:
        """Gives both as many runs as the faster one needs for a block."""
        runs = max(1, math.ceil(block_ms / min(run_ms)))
        return turns.Shares(runs=[runs, runs], pieces=1, warm=[1, 1])

    coordinator.share_time = share_runs
    coordinator.PROCESSOR = "none, so that the clock is the wall's"
    coordinator.main()


if __name__ == "__main__":
    main()
