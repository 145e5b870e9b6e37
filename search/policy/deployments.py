"""In which bits and at which threads a network is worth deploying; predicts from records alone."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.front.front import Traded, loss_matrix, losses
from search.policy.rows import Rows
from search.policy.stopping import are_hopeless, is_hopeless
from search.records.baseline import Baseline
from search.records.device import DeviceProfile
from search.records.network import Network
from search.records.point import Point
from search.records.trial import CompleteTrial, Cost, ScoredTrial, TrialRecord
from search.runtimes import runtimes
from search.space.space import Space

Deployment = tuple[int, int]  # bits and threads
# Multiply-accumulates, parameters, and the digest that tells apart networks that agree in both.
Structure = tuple[int, int, str]
# Of float's time where nobody has probed the device: integers are worth a try.
UNPROBED = {"float": 1.0, "integers": 0.5}
# Another deployment must promise to save this share of the time, or chance would choose.
LEAST_GAIN = 0.05
# The smaller a network, the less it gains from threads and from 8 bits, which cost each layer time:
# without, it may take so much less of the time in a network of less than half the size than has
# been seen in the larger one.
MUCH_SMALLER, PLAINER = 0.5, 0.7


@dataclass
class LatencyModel:
    """What is known of a device's latencies, and what can be expected; grows with the trials.

    Attributes:
        device: Where networks are measured.
        baseline: The uncompressed network's latencies.
        measured: Latency by structure and deployment.
    """

    device: DeviceProfile
    baseline: Baseline
    measured: dict[Structure, dict[Deployment, float]]

    def __post_init__(self) -> None:
        # Structures by two deployments that they were measured in, and by bits that they were
        # measured in beside float with as many threads.
        self._alike: defaultdict[tuple[Deployment, Deployment] | int, _Alike] = defaultdict(_Alike)
        for structure, cells in self.measured.items():
            for deployment in cells:
                self._index(structure, deployment)

    def add(self, record: TrialRecord) -> None:
        """Adds what a trial has measured."""
        if record.figures is None:
            return
        structure = structure_of(record.figures)
        deployment = deployment_of(record.point)
        cells = self.measured.setdefault(structure, {})
        is_new = deployment not in cells
        cells[deployment] = record.figures.latency_ms
        if is_new:
            self._index(structure, deployment)

    def _index(self, structure: Structure, deployment: Deployment) -> None:
        for other in self.measured[structure]:
            for here, there in ((deployment, other), (other, deployment)):
                self._alike[here, there].add(structure)
                if here[0] == 32 and here[1] == there[1]:
                    self._alike[there[0]].add(structure)

    def predicted_ms(self, structure: Structure, wanted: Deployment) -> float:
        """Returns a measured structure's latency, or what others let one expect of it."""
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
            return self.predicted_ms(structure, (32, threads)) * self._format(structure, wanted)
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
                wanted: self.predicted_ms(structure, wanted)
                / (1 if wanted in self.measured[structure] else 1 - LEAST_GAIN)
                for wanted in allowed
            }
            for structure in set(structures)
        }

    def _format(self, structure: Structure, wanted: Deployment) -> float:
        """Returns what bits do to the latency: as shown at any thread count, else as probed."""
        bits = wanted[0]
        other = self._alike[bits].nearest(structure)
        if other is None:
            return self._guess(wanted) / self._guess((32, wanted[1]))
        cells = self.measured[other]
        return min(
            ms / cells[32, n] for (b, n), ms in cells.items() if b == bits and (32, n) in cells
        )

    def _shown(self, structure: Structure, here: Deployment, wanted: Deployment) -> float | None:
        """Returns the latency of ``wanted`` over ``here`` in the most similar structure."""
        other = self._alike[here, wanted].nearest(structure)
        if other is None:
            return None
        share = self.measured[other][wanted] / self.measured[other][here]
        is_plainer = wanted[1] < here[1] or wanted[0] == 32 != here[0]
        is_much_smaller = structure[0] < MUCH_SMALLER * other[0]
        return share * (PLAINER if is_plainer and is_much_smaller else 1.0)

    def _guess(self, deployment: Deployment) -> float:
        bits, threads = deployment
        stored = runtimes()[self.device.runtime_name].formats[bits]
        # As the probe calls it.
        name = f"{stored.name} {self.device.int8_format}" if bits == 8 else stored.name
        probed = bits != 32 and name in self.device.speeds
        share = self.device.speeds[name].ratio if probed else UNPROBED[stored.computes]
        return share * self.baseline.latency_ms(threads)


class _Alike:
    """Structures, of which it finds the one most similar to another."""

    def __init__(self) -> None:
        self._by_macs: list[tuple[int, int, Structure]] = []  # and by the order that they came in
        self._known: set[Structure] = set()

    def add(self, structure: Structure) -> None:
        """Adds a structure, unless it is there."""
        if structure not in self._known:
            insort(self._by_macs, (structure[0], len(self._known), structure))
            self._known.add(structure)

    def nearest(self, structure: Structure) -> Structure | None:
        """Returns the most similar structure, of equal ones the first that came."""
        above = bisect_left(self._by_macs, (structure[0],))
        candidates = self._by_macs[above : above + 1]
        if above > 0:
            below_macs = self._by_macs[above - 1][0]
            candidates.append(self._by_macs[bisect_left(self._by_macs, (below_macs,))])
        ranked = ((_unlikeness(structure, other), order, other) for _, order, other in candidates)
        return min(ranked, default=(0.0, 0, None))[2]


# What is known of a student; see ``Figures`` for meanings and units.
STUDENT = np.dtype(
    [
        ("structure", int),
        ("is_changed", bool),
        ("bits", int),
        ("siblings", int),
        ("val_accuracy", float),
        ("float_accuracy", float),
        ("latency_ms", float),
        ("size_bytes", float),
        ("cpu_ms", float),
        ("peak_rss_bytes", float),
    ]
)


class Students:
    """Trials whose network can be deployed otherwise, and how often it was; grows with them.

    Thousands of them are looked at together: most cannot reach the front in whatever deployment.

    Attributes:
        records: The trials.
    """

    def __init__(self, records: Iterable[TrialRecord] = ()) -> None:
        self.records: list[ScoredTrial] = []
        self._rows: dict[int, int] = {}  # by a trial's number
        self._structures: dict[Structure, int] = {}
        self._table = Rows((), STUDENT)
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Adds a finished trial: a network of its own, another deployment of one, or neither."""
        if record.student_of is not None:
            self._table.array["siblings"][self._rows[record.student_of]] += 1
        elif isinstance(record, ScoredTrial):
            own, structure = record.figures, structure_of(record.figures)
            self._rows[record.number] = len(self.records)
            self.records.append(record)
            self._table.add(
                (
                    self._structures.setdefault(structure, len(self._structures)),
                    own.is_changed,
                    record.point.whole("bits"),
                    0,
                    own.val_accuracy,
                    own.float_accuracy,
                    own.latency_ms,
                    own.size_bytes,
                    own.cpu_ms,
                    own.peak_rss_bytes,
                )
            )

    def open(self, limit: int, busy: Iterable[int], only_changed: bool) -> NDArray[np.intp]:
        """Returns the positions in ``records`` of networks that may be deployed once more.

        Args:
            limit: Other deployments that a network may have.
            busy: Numbers of the trials whose networks are just being deployed otherwise.
            only_changed: Whether the original's network does not count.
        """
        siblings = self._table.array["siblings"].copy()
        for number in busy:
            siblings[self._rows[number]] += 1
        is_open = siblings < limit
        if only_changed:
            is_open &= self._table.array["is_changed"]
        return np.flatnonzero(is_open)

    def structures(self, chosen: NDArray[np.intp]) -> list[Structure]:
        """Returns the different structures of the trials at positions ``chosen``."""
        everything = list(self._structures)
        return [everything[n] for n in np.unique(self._table.array["structure"][chosen])]

    def at_most(
        self,
        chosen: NDArray[np.intp],
        promised: Mapping[Structure, Mapping[Deployment, float]],
        objectives: Sequence[str],
    ) -> NDArray[np.float64]:
        """Returns losses ``[k, m]`` that no promised deployment can be expected to undercut."""
        lowest_ms = np.full(len(self._structures), np.nan)
        for structure, latencies in promised.items():
            lowest_ms[self._structures[structure]] = min(latencies.values())
        widths = [bits for latencies in promised.values() for bits, _ in latencies]
        own = self._table.array[chosen]
        predicted_ms = lowest_ms[own["structure"]]
        recovered = np.where(own["bits"] < max(widths), own["float_accuracy"], 0.0)
        columns: tuple[Any, ...] = (  # in place of numbers
            np.maximum(own["val_accuracy"], recovered),
            predicted_ms,
            np.round(own["size_bytes"] * min(widths) / own["bits"]),
            own["cpu_ms"] * np.fmin(predicted_ms / own["latency_ms"], 1.0),
            own["peak_rss_bytes"],
        )
        most: Any = Traded(*columns)
        lost: list[Any] = losses(most, most.val_accuracy, objectives)
        return np.column_stack(lost)


@dataclass(frozen=True)
class Prediction:
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


def start_latency_model(
    original: Structure, device: DeviceProfile, baseline: Baseline
) -> LatencyModel:
    """Returns what is known of a device before the first trial: the original's latencies."""
    cells = {(32, n): baseline.latency_ms(n) for n in baseline.against_base}
    return LatencyModel(device, baseline, {original: cells})


def most_promising(
    point: Point,
    structure: Structure,
    latency_model: LatencyModel,
    allowed: Collection[Deployment],
    space: Space,
) -> Point:
    """Moves a point to the bits and threads that are fastest for a network of its size.

    Args:
        point: As sampled.
        structure: Of its pruned network.
        latency_model: What was measured so far.
        allowed: Deployments to choose among; if none was measured, the point stays.
        space: That points lie in.
    """
    known = [s for s, cells in latency_model.measured.items() if cells.keys() & allowed]
    if not known:
        return point
    cells = latency_model.measured[min(known, key=lambda s: _unlikeness(structure, s))]

    def price(deployment: Deployment) -> float:  # fewer bits cost accuracy
        return cells[deployment] / (1.0 if deployment[0] == 32 else 1 - LEAST_GAIN)

    bits, threads = min(sorted(cells.keys() & allowed, reverse=True), key=price)
    return space.moved(point, bits=bits, threads=threads)


def worth_deploying(
    students: Students,
    chosen: NDArray[np.intp],
    tried: Container[Point],
    members: Sequence[CompleteTrial],
    latency_model: LatencyModel,
    allowed: Collection[Deployment],
    space: Space,
    objectives: Sequence[str],
) -> list[Prediction]:
    """Chooses points that share a student and may reach the front.

    A point is left out where a point of the front is at least as good in everything as can be
    hoped for: the student's float accuracy, and a latency that saves enough to matter.

    Args:
        students: Trials that trained one, or needed no training.
        chosen: Positions of those that count.
        tried: Points of all trials so far.
        members: Their front.
        latency_model: What they have measured.
        allowed: Deployments to choose among.
        space: That points lie in.
        objectives: Names of what the front trades.
    """
    if not chosen.size or not allowed:
        return []
    # By their centres: a prediction is lucky enough, and a poor measurement would let all through.
    beaten = loss_matrix(members, objectives)
    promised = latency_model.promises(students.structures(chosen), allowed)
    hopeless = are_hopeless(students.at_most(chosen, promised, objectives), beaten)
    predictions = []
    for trained in (students.records[position] for position in chosen[~hopeless]):
        for deployment, ms in promised[structure_of(trained.figures)].items():
            bits, threads = deployment
            point = space.moved(trained.point, bits=bits, threads=threads)
            figures = _predict(trained, bits, ms)
            promised_losses = losses(figures, figures.val_accuracy, objectives)
            if point not in tried and not is_hopeless(promised_losses, beaten):
                predictions.append(Prediction(trained.number, point, figures))
    return predictions


def _predict(trained: ScoredTrial, bits: int, predicted_ms: float) -> Traded:
    """Returns the best that can be expected of a student in so many bits."""
    own = trained.figures
    # What was lost in few bits comes back in more; float's own model shows already what it can.
    recovered = own.float_accuracy if trained.point.whole("bits") < bits else 0.0
    return Traded(
        val_accuracy=max(own.val_accuracy, recovered),
        latency_ms=predicted_ms,
        size_bytes=round(own.size_bytes * bits / trained.point.whole("bits")),
        cpu_ms=own.cpu_ms * min(predicted_ms / own.latency_ms, 1.0),
        peak_rss_bytes=own.peak_rss_bytes,
    )


def deployment_of(point: Point) -> Deployment:
    """Returns how a point's model is stored and run."""
    return point.whole("bits"), point.whole("threads")


def structure_of(one: Cost | Network) -> Structure:
    """Returns what tells networks of one study apart."""
    return one.macs, one.parameters, one.structure
