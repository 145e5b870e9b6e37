"""What a model's session is made with."""

from __future__ import annotations

from .messages import Message

SPINNING = "session.intra_op.allow_spinning"


def session_options(threads: int, session_entries: dict[str, str]) -> Message:
    """Tells what a session is made with, in measurements and wherever else the model is to run.

    Args:
        threads: That one run may use.
        session_entries: Of the model's own, before which those of every session stand back.
    """
    # Two sessions take turns: threads that spin would steal the other's processor.
    entries = {SPINNING: "0", "session.set_denormal_as_zero": "1"}
    return {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization_level": "all",
        "session_entries": {**entries, **session_entries},
    }
