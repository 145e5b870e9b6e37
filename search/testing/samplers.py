"""What every sampler promises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.config.study import SamplerConfig
from search.records.point import Point
from search.space.dimension import Dimension, When
from search.space.domains import Axis, Choice, Range
from search.space.space import Space
from search.study.sampling import History, choose, make_sampler, together

NAME = "contract"
TRIALS, FEW = 8, 6
WORKERS = 2
SEED, OTHER_SEED = 3, 1_000_003
AXES: dict[str, Axis] = {
    "momentum": Range(0.0, 0.99),
    "ratio": Range(0.0, 0.9),
    "rate": Range(0.001, 0.1, log=True),
    "bits": Choice((32, 8, 4)),
    "threads": Range(1, 4, whole=True),
    "optimizer": Choice(("sgd", "adam")),
}
WHEN = {"momentum": When("optimizer", ("sgd",))}


def _dimension(name: str, axis: Axis) -> Dimension:
    sound = axis.values[0] if isinstance(axis, Choice) else axis.typed(axis.low)
    phrase = f"{name} {{}}"
    return Dimension(name, "training", lambda cores: axis, sound, name, phrase, when=WHEN.get(name))


SPACE = Space(AXES, tuple(_dimension(name, axis) for name, axis in AXES.items()))


class SamplerContract:
    """A suite for one sampler, which is asked as a study asks it: built anew for every trial.

    Fixture: ``sampler``, its section of the configuration, a class of ``search.config.study``, for
    one of a plug-in's ``PluginSamplerConfig``. To see it learn, have it begin to after four trials.
    """

    def test_it_proposes_what_the_space_holds(self, sampler: SamplerConfig) -> None:
        """And of a dimension that matters only beside others nothing where it does not."""
        points = _search(sampler, SPACE)
        assert all(map(SPACE.contains, points))
        used = {point.values["optimizer"]: "momentum" in point.values for point in points}
        assert used == {"sgd": True, "adam": False}
        assert len(set(points)) > TRIALS / 2

    def test_it_leaves_alone_what_is_fixed(self, sampler: SamplerConfig) -> None:
        """Also where that decides whether another dimension matters."""
        space = SPACE.fix(bits=8, optimizer="adam")
        for point in _search(sampler, space, FEW):
            assert space.contains(point)
            assert (point.values["bits"], "momentum" in point.values) == (8, False)

    def test_the_seed_decides(self, sampler: SamplerConfig) -> None:
        """The same one proposes the same, another one something else."""
        first = _search(sampler, SPACE)
        assert _search(sampler, SPACE) == first
        assert _search(sampler, SPACE, FEW, seed=OTHER_SEED) != first[:FEW]

    def test_a_study_that_broke_off_goes_on_as_if_it_had_not(self, sampler: SamplerConfig) -> None:
        """All that it knows it reads from the study, in which trials failed or broke limits."""
        broken_off = _search(sampler, SPACE, breaks=(FEW - 3, FEW))
        assert broken_off == _search(sampler, SPACE)


def _search(
    sampler: SamplerConfig,
    space: Space,
    trials: int = TRIALS,
    seed: int = SEED,
    breaks: Sequence[int] = (),
) -> list[Point]:
    """Returns the points that a study tries, two of them side by side.

    Args:
        sampler: Chooses them.
        space: To choose from.
        trials: How many points.
        seed: Of the study.
        breaks: Before which trials the process that searches is another one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = InMemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name=NAME, directions=["minimize", "minimize"]
    )
    memory, under_way, found = History(study), list[optuna.Trial](), list[Point]()
    for number in range(trials):
        if number in breaks:
            study = optuna.load_study(study_name=NAME, storage=storage)
            memory = History(study)
            under_way = [optuna.Trial(study, one._trial_id) for one in under_way]
        asked = study.ask()
        study.sampler = make_sampler(sampler, together(space), seed + number, memory, under_way)
        choose(asked, space)
        found.append(space.point(asked.params))
        under_way.append(asked)
        if len(under_way) == WORKERS:
            done = under_way.pop(0)
            memory.add(_tell(study, done, found[done.number]))
    return found


def _tell(study: optuna.Study, asked: optuna.Trial, point: Point) -> FrozenTrial:
    """Ends a trial as one of a network does: mostly with an error and a time, in ms."""
    asked.set_constraint("limit", 1.0 if asked.number % 4 == 1 else 0.0)
    if asked.number % 5 in (2, 4):
        failed = asked.number % 5 == 2
        return study.tell(asked, state=TrialState.FAIL if failed else TrialState.PRUNED)
    ratio, bits = float(point.values["ratio"]), int(point.values["bits"])
    error = ratio**2 + 0.1 / bits + abs(math.log10(float(point.values["rate"])) + 2) / 10
    return study.tell(asked, [error, (1 - ratio) * bits / int(point.values["threads"])])
