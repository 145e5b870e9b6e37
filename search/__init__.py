"""Searches compressions of a CNN for the Pareto front of accuracy against latency."""

import os

# What other people's packages must be told before they are imported, in every process: to report
# nothing to anybody (docs/security.md). Whoever sets one of these otherwise has decided so.
_SILENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # "0", "false" and nothing at all leave it on
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name, _value in _SILENT.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
