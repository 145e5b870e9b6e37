"""The agent with the rule of protocol 2, to be compared with today's.

Both models of a round get the same number of runs, whatever each takes, timed as a whole by the
wall clock. Everything else is the agent's own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.benchmark import agent


def share_runs(run_ms: Sequence[float], block_ms: float) -> agent.Shares:
    """Gives both as many runs as the faster one needs for a block."""
    runs = max(1, math.ceil(block_ms / min(run_ms)))
    return agent.Shares(runs=[runs, runs], pieces=1, warm=[1, 1])


if __name__ == "__main__":
    agent.share_time = share_runs
    agent.is_fine = lambda *_: False
    agent.__file__ = __file__  # what its children are started from
    is_child = sys.argv[1:] == ["session"]
    (agent.run_session if is_child else agent.run_coordinator)(agent.claim_stdout())
