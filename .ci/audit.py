"""Audits what is installed: that it is what constraints.txt pins, and that no fault of it is known.

Usage: python .ci/audit.py [path of pip-audit]

Known faults are looked up by pip-audit. Where its data cannot be reached, or knows nothing of a
package, this says so and does not pretend: then the pins alone were checked.
Exit status: 0, or 1 when something else is installed than is pinned, or a fault is known.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
# The project itself, and what makes the environment.
OWN = {"cnn-search", "pip", "setuptools", "wheel"}
TIMEOUT_S = 300


def plain(name: str) -> str:
    """Writes a package's name as indices do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> dict[str, str]:
    """Returns the version of every package in a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {plain(name): version for name, version in pairs}


def compare(pins: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Returns in what the installed packages differ from the pinned ones."""
    return [
        f"{name} {version} is installed, and {pins.get(name, 'nothing')} is pinned"
        for name, version in sorted(installed.items())
        # A label such as +cpu names the build, not the version.
        if name not in OWN and version.partition("+")[0] != pins.get(name)
    ]


def look_up(pip_audit: str) -> tuple[list[str], int, str]:
    """Asks pip-audit about every pin: known faults, packages looked up, why not more of them."""
    words = [pip_audit, "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    try:
        done = subprocess.run(
            [*words, "-r", str(PINS)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        told = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], 0, f"pip-audit does not run ({type(error).__name__})"
    except (ValueError, KeyError, TypeError):
        return [], 0, (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:300]
    known = [one for one in told if "skip_reason" not in one]
    faults = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in "
        f"{', '.join(fault['fix_versions']) or 'no version yet'}"
        for one in known
        for fault in one["vulns"]
    ]
    reasons = (one["skip_reason"] for one in told if "skip_reason" in one)
    return faults, len(known), next(reasons, "")


def main(arguments: list[str]) -> int:
    """Says what was found, and returns the exit status."""
    pins = read_pins(PINS.read_text(encoding="utf-8"))
    installed = {plain(one.metadata["Name"]): one.version for one in distributions()}
    faults = compare(pins, installed)
    if not faults:
        print(f"audit: all {len(installed.keys() & pins.keys())} packages are as pinned")
    vulnerable, known, why = look_up(arguments[0]) if arguments else ([], 0, "no pip-audit")
    print(f"audit: {known} of {len(pins)} pins looked up, {len(vulnerable)} known faults")
    if known < len(pins):
        print(f"audit: NOT looked up: {len(pins) - known} pins ({why})")
    for fault in (*faults, *vulnerable):
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults or vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
