"""In which bits and at which threads a network is worth deploying; predicts from records alone.

It does not know how networks are trained or measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from search.figures import Yardstick
from search.front import Traded, loss_matrix, losses
from search.records import DeviceProfile, Point, TrialRecord
from search.stopping import are_hopeless, is_hopeless

Deployment = tuple[int, int]  # bits and threads
Structure = tuple[int, int]  # multiply-accumulates and parameters
# As the probe calls what is stored in so many bits.
FORMATS = {16: "16-bit weights", 4: "4-bit weights"}
# Of float's time where nobody has probed the device: 8 bits are worth a try.
UNPROBED = {32: 1.0, 16: 1.0, 8: 0.5, 4: 1.0}
# Another deployment must promise to save this share of the time, or chance would choose.
LEAST_GAIN = 0.05
# The smaller a network, the less it gains from threads: fewer may take so much less of the time in
# a network of less than half the size than the larger one has shown.
MUCH_SMALLER, FEWER_THREADS = 0.5, 0.7


@dataclass
class Outlook:
    """What is known of a device's latencies, and what can be hoped for; grows with the trials.

    Attributes:
        device: Where networks are measured.
        yardstick: The uncompressed network's latencies.
        measured: Latency by structure and deployment.
    """

    device: DeviceProfile
    yardstick: Yardstick
    measured: dict[Structure, dict[Deployment, float]]

    def add(self, record: TrialRecord) -> None:
        """Adds what a trial has measured."""
        if record.figures.latency_ms is not None:
            cells = self.measured.setdefault(_structure_of(record), {})
            cells[record.point.bits, record.point.threads] = record.figures.latency_ms

    def hope_ms(self, structure: Structure, wanted: Deployment) -> float:
        """Returns a measured structure's latency, or what others let one hope for it."""
        own = self.measured[structure]
        if wanted in own:
            return own[wanted]
        shown = [
            ms * share for d, ms in own.items() if (share := self._shown(structure, d, wanted))
        ]
        if shown:
            return min(shown)
        bits, threads = wanted
        same = {here: ms for here, ms in own.items() if here[0] == bits}
        if bits != 32 and not same:
            return self.hope_ms(structure, (32, threads)) * self._format(structure, wanted)
        return min(
            ms * self._guess(wanted) / self._guess(here) for here, ms in (same or own).items()
        )

    def promises(
        self, structures: Iterable[Structure], allowed: Collection[Deployment]
    ) -> dict[Structure, dict[Deployment, float]]:
        """Returns the latency that each structure may have in each deployment.

        What was not measured must promise more than was measured.
        """
        return {
            structure: {
                wanted: self.hope_ms(structure, wanted)
                / (1 if wanted in self.measured[structure] else 1 - LEAST_GAIN)
                for wanted in allowed
            }
            for structure in set(structures)
        }

    def _format(self, structure: Structure, wanted: Deployment) -> float:
        """Returns what bits do to the latency: as shown at any thread count, else as probed."""
        bits = wanted[0]
        for other in sorted(self.measured, key=lambda s: _unlikeness(structure, s)):
            cells = self.measured[other]
            shown = [
                ms / cells[32, n] for (b, n), ms in cells.items() if b == bits and (32, n) in cells
            ]
            if shown:
                return min(shown)
        return self._guess(wanted) / self._guess((32, wanted[1]))

    def _shown(self, structure: Structure, here: Deployment, wanted: Deployment) -> float | None:
        """Returns the latency of ``wanted`` over ``here`` in the most similar structure."""
        known = [s for s, cells in self.measured.items() if {here, wanted} <= cells.keys()]
        if not known:
            return None
        other = min(known, key=lambda s: _unlikeness(structure, s))
        share = self.measured[other][wanted] / self.measured[other][here]
        is_much_smaller = structure[0] < MUCH_SMALLER * other[0]
        return share * (FEWER_THREADS if is_much_smaller and wanted[1] < here[1] else 1.0)

    def _guess(self, deployment: Deployment) -> float:
        bits, threads = deployment
        name = FORMATS.get(bits, f"8 bits {self.device.int8_format}")
        probed = bits != 32 and name in self.device.speeds
        share = self.device.speeds[name].ratio if probed else UNPROBED[bits]
        return share * self.yardstick.latency_ms(threads)


@dataclass(frozen=True)
class Hope:
    """A deployment worth a try.

    Attributes:
        student: Number of the trial that trained its network.
        point: With the bits and threads to try.
        figures: What is hoped for.
    """

    student: int
    point: Point
    figures: Traded


def _unlikeness(one: Structure, other: Structure) -> float:
    return abs(math.log((one[0] + 1) / (other[0] + 1)))


def look_out(
    records: Sequence[TrialRecord], original: Structure, device: DeviceProfile, yardstick: Yardstick
) -> Outlook:
    """Gathers what trials so far have measured, and the yardstick of the original."""
    cells = {(32, n): yardstick.latency_ms(n) for n in yardstick.against_base}
    outlook = Outlook(device, yardstick, {original: cells})
    for record in records:
        outlook.add(record)
    return outlook


def most_promising(
    point: Point, structure: Structure, outlook: Outlook, allowed: Collection[Deployment]
) -> Point:
    """Moves a point to the bits and threads that are fastest for a network of its size.

    Args:
        point: As sampled.
        structure: Of its pruned network.
        outlook: What was measured so far.
        allowed: Deployments that the space holds; if none was measured, the point stays.
    """
    known = [s for s, cells in outlook.measured.items() if cells.keys() & allowed]
    if not known:
        return point
    cells = outlook.measured[min(known, key=lambda s: _unlikeness(structure, s))]

    def price(deployment: Deployment) -> float:  # fewer bits cost accuracy
        return cells[deployment] / (1.0 if deployment[0] == 32 else 1 - LEAST_GAIN)

    bits, threads = min(sorted(cells.keys() & allowed, reverse=True), key=price)
    return replace(point, bits=bits, threads=threads)


def worth_deploying(
    students: Sequence[TrialRecord],
    records: Sequence[TrialRecord],
    members: Sequence[TrialRecord],
    outlook: Outlook,
    allowed: Collection[Deployment],
    objectives: Sequence[str],
) -> list[Hope]:
    """Chooses points that share a student and may reach the front.

    A point is left out where a point of the front is at least as good in everything as can be
    hoped for: the student's float accuracy, and a latency that saves enough to matter.

    Args:
        students: Trials that trained one, or needed no training.
        records: All trials so far.
        members: Their front.
        outlook: What they have measured.
        allowed: Deployments that the space holds.
        objectives: Names of what the front trades.
    """
    if not students or not allowed:
        return []
    beaten = loss_matrix(members, objectives)
    promised = outlook.promises(map(_structure_of, students), allowed)
    # Most students cannot reach the front in whatever deployment: seen at once, they cost little.
    bounds = [_at_most(trained, promised[_structure_of(trained)]) for trained in students]
    hopeless = are_hopeless([losses(bound, objectives) or [] for bound in bounds], beaten)
    hopeful = [one for one, is_out in zip(students, hopeless, strict=True) if not is_out]
    if not hopeful:
        return []
    tried = {record.point for record in records}
    hopes = []
    for trained in hopeful:
        for deployment, ms in promised[_structure_of(trained)].items():
            bits, threads = deployment
            point = replace(trained.point, bits=bits, threads=threads)
            figures = _hope(trained, bits, ms)
            hoped = losses(figures, objectives)
            if point not in tried and hoped is not None and not is_hopeless(hoped, beaten):
                hopes.append(Hope(trained.number, point, figures))
    return hopes


def _hope(trained: TrialRecord, bits: int, hope_ms: float) -> Traded:
    """Returns the best that can be expected of a student in so many bits."""
    own = trained.figures
    # What was lost in few bits comes back in more; float's own model shows already what it can.
    recovered = (own.float_accuracy or 0.0) if trained.point.bits < bits else 0.0
    return Traded(
        val_accuracy=max(own.val_accuracy or 0.0, recovered),
        latency_ms=hope_ms,
        size_bytes=round((own.size_bytes or 0) * bits / trained.point.bits),
        cpu_ms=(own.cpu_ms or 0.0) * min(hope_ms / (own.latency_ms or hope_ms), 1.0),
        peak_rss_bytes=own.peak_rss_bytes,
    )


def _at_most(trained: TrialRecord, promised: Mapping[Deployment, float]) -> Traded:
    """Returns what no deployment of a student can be expected to surpass."""
    widths = [bits for bits, _ in promised]
    most = _hope(trained, max(widths), min(promised.values()))
    smallest = (trained.figures.size_bytes or 0) * min(widths) / trained.point.bits
    return most._replace(size_bytes=round(smallest))


def _structure_of(record: TrialRecord) -> Structure:
    return record.figures.macs or 0, record.figures.parameters or 0
