"""Energy counters of the processor."""

from __future__ import annotations

from pathlib import Path

from .messages import Message

POWERCAP = Path("/sys/class/powercap")


def read_energy(root: Path) -> Message:
    """Reads the energy counters of the processor packages.

    Returns:
        ``{"source": ..., "zones": {name: [microjoules, where it starts anew]}}``, or
        ``{"reason": ...}`` where there are none.

    Source: Linux documentation, powercap; never estimated from a rated power.
    """
    zones = {}
    for zone in sorted(root.glob("intel-rapl:[0-9]*")):
        try:
            # Others are parts of a package, or the whole platform with the packages in it.
            if not (zone / "name").read_text().startswith("package"):
                continue
            values = [int((zone / n).read_text()) for n in ("energy_uj", "max_energy_range_uj")]
        except OSError as error:
            return {"reason": f"the RAPL counter cannot be read ({error.strerror})"}
        zones[zone.name] = values
    if not zones:
        return {"reason": "no RAPL counters here, as in virtual machines and on other processors"}
    return {"source": "RAPL, all packages", "zones": zones}


def energy_of_run(before: Message, after: Message, runs: int) -> Message:
    """Returns ``{"mj": millijoules of one run, "source": ...}`` or ``{"mj": None, "reason": ...}``.

    The whole package's energy, idle parts and neighbours included.
    """
    for reading in (before, after):
        if "reason" in reading:
            return {"mj": None, "reason": reading["reason"]}
    spent = 0
    for zone, (end, wrap) in after["zones"].items():
        begin = before["zones"][zone][0]
        spent += end - begin if end >= begin else end + wrap - begin
    if spent == 0:
        return {"mj": None, "reason": "the RAPL counters stand still"}
    return {"mj": spent / 1e3 / runs, "source": after["source"]}
