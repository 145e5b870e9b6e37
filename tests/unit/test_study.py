"""A study and its coordinator with a fake engine: budgets, outcomes, and going on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.config.study import (
    GpConfig,
    NsgaConfig,
    PolicyConfig,
    RandomConfig,
    SamplerConfig,
    StudyConfig,
)
from search.errors import ConfigError, InfeasiblePoint, StageFailed
from search.front.importance import importances
from search.policy.stopping import survives
from search.records.bench import Lab
from search.records.point import Point
from search.records.steps.measuring import Measure
from search.records.steps.pruning import Prune
from search.records.steps.scoring import Evaluate
from search.records.steps.step import Step
from search.records.steps.training import Finetune
from search.records.trial import CompleteTrial, Progress, ScoredTrial, StoppedTrial, TrialRecord
from search.space.dimension import Dimension
from search.space.domains import Range
from search.space.parsing import parse_space
from search.space.space import Space
from search.storage import Ledger
from search.storage.journal import Journal, Journals
from search.study.archive import OWN_FORMAT, earlier_points, read_archive
from search.study.study import RUNGS, Study
from tests.fakes import CUTS, PLAIN, POLICY, TPE, FakeEngine, lab, limits, measurement, trials_of
from tests.journals import without_sums
from tests.points import make_point

SPACE: dict[str, Any] = {
    "prune_ratio": {"low": 0.0, "high": 0.9},
    "bits": [32, 16, 8, 4],
    "distill_temperature": {"low": 1.0, "high": 10.0},
    "distill_weight": {"low": 0.0, "high": 1.0},
    "optimizer": ["sgd", "adamw"],
    "learning_rate": {"low": 0.001, "high": 0.1},
    "schedule": ["constant", "cosine"],
    "threads": [1, 2],
}
SAMPLERS: list[SamplerConfig] = [
    TPE,
    NsgaConfig(name="nsga2", population_size=4),
    GpConfig(name="gp", n_startup_trials=5),
    RandomConfig(name="random"),
]


def space(**changes: Any) -> Space:
    return parse_space({**SPACE, **changes}, usable_cores=2)


def open_study(
    journal: Ledger,
    n_trials: int | None = 12,
    where: Space | None = None,
    settings: dict[str, Any] | None = None,
    timeout_s: float | None = None,
) -> Study:
    config = StudyConfig(name="s", n_trials=n_trials, timeout_s=timeout_s, warm_start=(), seed=3)
    where = where or space()
    given = {"space": where.describe()} if settings is None else settings
    return Study(journal, config, where, ("accuracy", "latency"), given)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path, "s") as opened:
        yield opened


def told(journal: Journal) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="s", storage=journal.storage())
    return [(t.number, t.state, t.values, t.params) for t in study.get_trials()]


def essence(record: TrialRecord) -> TrialRecord:
    """A record without what differs between two runs of the same trial."""
    return replace(record, wall_s=0.0, finished_at=0.0, stage_s={}, reused_steps=0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_every_sampler_spends_the_budget_and_starts_uncompressed(
    journal: Journal, sampler: SamplerConfig
) -> None:
    study = open_study(journal, n_trials=13)
    records = list(trials_of(study, lab(), FakeEngine(), sampler=sampler))
    assert [r.number for r in records] == list(range(13))
    assert (records[0].point.number("prune_ratio"), records[0].point.whole("bits")) == (0.0, 32)
    assert [
        (r.point.number("prune_ratio"), r.point.whole("bits"), r.point.whole("threads"))
        for r in records[1:9]
    ] == [
        (0.0, 8, 2),
        (0.5, 32, 2),
        (0.5, 8, 2),
        (0.5, 32, 1),
        (0.3, 32, 1),
        (0.3, 8, 2),
        (0.7, 32, 1),
        (0.9, 32, 1),
    ]
    # The original is measured at its own best thread count, so its speed-up is 1.
    assert records[0].point.whole("threads") == 2
    assert records[0].figures is not None
    assert records[0].figures.speedup == pytest.approx(1.0)
    assert all(t.state == TrialState.COMPLETE for t in _trials(journal))


def _trials(journal: Journal) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=journal.storage()).get_trials()


def test_the_same_seed_draws_the_same_points(tmp_path: Path) -> None:
    points = []
    for name in ("a", "b"):
        with Journal(tmp_path / name, "s") as journal:
            points.append([r.point for r in trials_of(open_study(journal), lab(), FakeEngine())])
    assert points[0] == points[1]
    assert len(set(points[0])) == len(points[0])


@pytest.mark.parametrize(
    ("sampler", "policy", "stop_at"),
    [
        *product(SAMPLERS[:1], [PLAIN, POLICY], [1, 5, 9, 14, 23, 40]),
        *product([SAMPLERS[1], SAMPLERS[3]], [POLICY], [31, 62]),
    ],
)
def test_an_interrupted_study_ends_like_an_uninterrupted_one(
    tmp_path: Path, sampler: SamplerConfig, policy: PolicyConfig, stop_at: int
) -> None:
    given: dict[str, Any] = {"sampler": sampler, "policy": policy}
    with Journal(tmp_path / "whole", "s") as journal:
        whole = list(trials_of(open_study(journal), lab(), FakeEngine(), **given))
        wanted = told(journal)
    steps = 0

    def interrupt(step: Step[Any]) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt

    engine = FakeEngine(interrupt)
    folder = tmp_path / "cut"
    with Journal(folder, "s") as journal, pytest.raises(KeyboardInterrupt):
        list(trials_of(open_study(journal), lab(), engine, **given))
    with Journal(folder, "s") as journal:
        study = open_study(journal)
        list(trials_of(study, lab(), engine, **given))
        assert told(journal) == wanted
        assert [essence(r) for r in study.records] == [essence(r) for r in whole]
    keys = [step.key for step in engine.computed]
    assert len(keys) == len(set(keys)), "a finished step was computed again"


@pytest.mark.parametrize("policy", [PLAIN, POLICY], ids=["plain", "thrifty"])
def test_a_study_goes_on_from_any_line_of_its_journal(tmp_path: Path, policy: PolicyConfig) -> None:
    limited = lab(max_accuracy_drop=0.06, max_latency_ms=0.5)
    with Journal(tmp_path / "whole", "s") as journal:
        whole = list(trials_of(open_study(journal, 7), limited, FakeEngine(), policy=policy))
        wanted = told(journal)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for cut in range(0, len(lines), 11):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "s.journal").write_bytes(b"".join(lines[:cut]))
        with Journal(folder, "s") as journal:
            study = open_study(journal, 7)
            list(trials_of(study, limited, FakeEngine(), policy))
            assert told(journal) == wanted, cut
            assert [essence(r) for r in study.records] == [essence(r) for r in whole]


@pytest.mark.parametrize("n_trials", [0, 2])
def test_a_recorded_trial_that_was_not_told_is_told(journal: Journal, n_trials: int) -> None:
    study = open_study(journal, n_trials=2)
    original = study.tell

    def die(asked: optuna.Trial, record: TrialRecord) -> optuna.trial.FrozenTrial:
        if record.number == 1:
            raise KeyboardInterrupt
        return original(asked, record)

    study.tell = die  # type: ignore[method-assign]
    engine = FakeEngine()
    with pytest.raises(KeyboardInterrupt):
        list(trials_of(study, lab(), engine))
    computed = len(engine.computed)
    again = open_study(journal, n_trials=n_trials)
    assert [r.number for r in trials_of(again, lab(), engine)] == [1]
    assert len(engine.computed) == computed
    assert [t.state for t in _trials(journal)][:2] == [TrialState.COMPLETE] * 2


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    with Journal(tmp_path, "s") as journal:
        list(trials_of(open_study(journal, n_trials=3), lab(), FakeEngine()))
        wanted = told(journal)
    with journal.path.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker_id"')
    with Journal(tmp_path, "s") as journal:
        assert told(journal) == wanted
        assert len(list(trials_of(open_study(journal, n_trials=5), lab(), FakeEngine()))) == 2


def test_a_larger_budget_continues(journal: Journal) -> None:
    assert len(list(trials_of(open_study(journal, n_trials=3), lab(), FakeEngine()))) == 3
    more = open_study(journal, n_trials=5)
    assert [r.number for r in trials_of(more, lab(), FakeEngine())] == [3, 4]
    assert [r.number for r in more.records] == [0, 1, 2, 3, 4]
    assert list(trials_of(open_study(journal, n_trials=5), lab(), FakeEngine())) == []


def test_a_trial_under_way_is_ended_also_within_a_smaller_budget(journal: Journal) -> None:
    steps = 0

    def interrupt(step: Step[Any]) -> None:
        nonlocal steps
        steps += 1
        if steps == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(trials_of(open_study(journal, n_trials=5), lab(), FakeEngine(interrupt)))
    study = open_study(journal, n_trials=2)
    begun = len(study.records) + 1
    assert begun > 2
    list(trials_of(study, lab(), FakeEngine()))
    kept = optuna.load_study(study_name="s", storage=journal.storage()).trials
    assert len(kept) == begun
    assert all(trial.state.is_finished() for trial in kept)
    assert len(study.records) == begun


def test_a_time_limit_ends_the_search(journal: Journal) -> None:
    study = open_study(journal, n_trials=None, timeout_s=0.3)
    records = list(trials_of(study, lab(), FakeEngine()))
    assert len(records) >= 1


def test_other_settings_are_refused(journal: Journal) -> None:
    begun = open_study(journal, n_trials=1, settings={"model.width": 8, "train.epochs": None})
    list(trials_of(begun, lab(), FakeEngine()))
    with pytest.raises(ConfigError) as caught:
        open_study(journal, settings={"model.width": 8, "train.epochs": 1.0})
    message = str(caught.value)
    assert message == (
        "train.epochs=1.0: the study s was begun with null; give that, or start another one with "
        "study.name=..."
    )


@pytest.mark.parametrize(
    ("key", "what"),
    [("model.checkpoint", "the weights of model.checkpoint"), ("data.content", "the images")],
)
def test_other_files_are_refused_by_what_they_are(journal: Journal, key: str, what: str) -> None:
    begun = open_study(journal, n_trials=1, settings={key: "a" * 64})
    list(trials_of(begun, lab(), FakeEngine()))
    before = journal.path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        open_study(journal, settings={key: "b" * 64})
    assert str(caught.value) == (
        f"{what} are not those that the study s was begun with (SHA-256 bbbbbbbb, then aaaaaaaa); "
        "give those, or start another one with study.name=..."
    )
    assert journal.path.read_bytes() == before


def test_a_damaged_last_line_is_told_at_once(journal: Journal) -> None:
    list(trials_of(open_study(journal, n_trials=1), lab(), FakeEngine()))
    whole = journal.path.read_bytes()
    lines = len(whole.splitlines())
    journal.path.write_bytes(whole[:-9] + b"\n")
    with pytest.raises(ConfigError, match=f"is damaged.*line {lines} was changed"):
        open_study(journal, n_trials=2)


def test_settings_bind_only_once_there_is_a_trial(journal: Journal) -> None:
    open_study(journal, settings={"train.teacher_learning_rate": 9.0})
    open_study(journal, settings={"train.teacher_learning_rate": 0.1})


def failing(kind: type[Step[Any]], error: Exception) -> FakeEngine:
    def interfere(step: Step[Any]) -> None:
        if isinstance(step, kind):
            raise error

    return FakeEngine(interfere)


def test_a_failed_trial_does_not_end_the_study(journal: Journal) -> None:
    engine = failing(Finetune, StageFailed("finetune", "the loss is not finite; lower it"))
    records = list(trials_of(open_study(journal, n_trials=4), lab(), engine))
    assert [r.outcome for r in records] == ["complete", "complete", "failed", "failed"]
    assert records[2].reason == "finetune: the loss is not finite; lower it"
    assert records[2].stage_s.keys() >= {"prune", "measure"}
    assert [t.state for t in _trials(journal)][2:4] == [TrialState.FAIL] * 2


def test_an_infeasible_point_is_recorded(journal: Journal) -> None:
    engine = failing(Prune, InfeasiblePoint("no channel is left in conv1; lower prune_ratio"))
    records = list(trials_of(open_study(journal, n_trials=1), lab(), engine))
    assert (records[0].outcome, records[0].reason) == (
        "infeasible",
        "no channel is left in conv1; lower prune_ratio",
    )
    assert _trials(journal)[0].state == TrialState.PRUNED


def test_an_error_of_the_configuration_ends_the_study(journal: Journal) -> None:
    engine = failing(Measure, ConfigError("the device is gone"))
    with pytest.raises(ConfigError, match="the device is gone"):
        list(trials_of(open_study(journal), lab(), engine))


def test_a_limit_known_before_training_ends_a_trial_untrained(journal: Journal) -> None:
    engine = FakeEngine()
    records = list(trials_of(open_study(journal, n_trials=3), lab(max_latency_ms=0.5), engine))
    assert [r.outcome for r in records[:3]] == ["infeasible", "complete", "complete"]
    assert records[0].violations["max_latency_ms"] == pytest.approx(0.3)
    assert records[0].reason == "exceeds max_latency_ms by 0.3"
    scored = [s for s in engine.computed if isinstance(s, Evaluate)]
    assert len(scored) == 3, "the original is scored, for it costs no training"
    frozen = _trials(journal)
    assert frozen[0].constraints["max_latency_ms"] > 0 >= frozen[1].constraints["max_latency_ms"]


def test_an_accuracy_limit_makes_a_trial_infeasible_with_its_values(journal: Journal) -> None:
    records = list(
        trials_of(open_study(journal, n_trials=4), lab(max_accuracy_drop=0.06), FakeEngine())
    )
    # int8 keeps a quarter of the bytes and so loses 0.075 by the fake's formula
    assert [r.outcome for r in records] == ["complete", "infeasible", "complete", "infeasible"]
    frozen = _trials(journal)[1]
    assert frozen.state == TrialState.COMPLETE
    assert frozen.constraints["max_accuracy_drop"] == pytest.approx(0.015)


def test_the_original_is_the_yardstick_even_outside_the_space(journal: Journal) -> None:
    narrow = space(bits=[8], prune_ratio={"low": 0.3, "high": 0.6}, threads=1)
    records = list(trials_of(open_study(journal, n_trials=6, where=narrow), lab(), FakeEngine()))
    assert (records[0].point.whole("bits"), records[0].point.number("prune_ratio")) == (32, 0.0)
    assert records[0].outcome == "complete"
    assert all(narrow.contains(r.point) for r in records[1:])
    assert _trials(journal)[0].state == TrialState.FAIL


def test_a_study_that_was_never_begun_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, "s"):
        pass
    assert list(tmp_path.iterdir()) == []
    with Journal(tmp_path, "s") as journal:
        open_study(journal)
    assert {path.name for path in tmp_path.iterdir()} == {"s.journal", "s.lock"}


@pytest.mark.parametrize("damage", ["{", '{"op_code": 99}', "[]"])
def test_a_damaged_journal_is_refused_by_name(journal: Journal, damage: str) -> None:
    list(trials_of(open_study(journal, n_trials=2), lab(), FakeEngine()))
    lines = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join([*lines[:3], damage, *lines[3:], ""]))
    with pytest.raises(ConfigError, match=r"s\.journal: is damaged, or another version wrote it"):
        open_study(journal)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a whole study."""
    with Journal(tmp_path_factory.mktemp("study"), "s") as journal:
        list(trials_of(open_study(journal, n_trials=2), lab(), FakeEngine()))
        return journal.path.read_text().splitlines(keepends=True)


HARMS: dict[str, tuple[Callable[[list[str], int], list[str]], str]] = {
    "lost": (lambda lines, n: lines[:n] + lines[n + 1 :], "the line before line {next} got lost"),
    "two lost": (lambda lines, n: lines[:n] + lines[n + 2 :], "the 2 lines before line {next}"),
    "twice": (lambda lines, n: lines[: n + 1] + lines[n:], "line {after} does not belong there"),
    "changed": (
        lambda lines, n: [*lines[:n], other_digit(lines[n]), *lines[n + 1 :]],
        "line {next} was changed",
    ),
}


def other_digit(line: str) -> str:
    return re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), line, count=1)


@pytest.mark.parametrize("how", HARMS)
def test_a_line_that_is_lost_or_changed_is_missed(
    lines: list[str], how: str, tmp_path: Path
) -> None:
    harm, said = HARMS[how]
    journal = Journal(tmp_path, "s")
    for n in range(0, len(lines) - 2, 3):
        harmed = harm(lines, n)
        assert harmed != lines
        journal.path.write_text("".join(harmed))
        found = said.format(next=n + 1, after=n + 2)
        with pytest.raises(ConfigError, match=re.escape(found)):
            read_archive(Journals(tmp_path), "s", "study")
        with pytest.raises(ConfigError, match=re.escape(found)), journal:
            open_study(journal, n_trials=2)


def test_a_study_of_an_earlier_version_goes_on_and_is_watched_from_there(journal: Journal) -> None:
    first = list(trials_of(open_study(journal, n_trials=2), lab(), FakeEngine()))
    plain = without_sums(journal.path)
    assert "crc32" not in plain
    journal.path.write_text(plain)
    assert list(trials_of(open_study(journal, n_trials=4), lab(), FakeEngine()))
    assert open_study(journal, n_trials=4).records[: len(first)] == first
    numbers = [json.loads(line).get("line") for line in journal.path.read_text().splitlines()]
    old = plain.count("\n")
    assert numbers == [None] * old + list(range(old + 1, len(numbers) + 1))
    lost = journal.path.read_text().splitlines(keepends=True)
    del lost[old + 3]
    journal.path.write_text("".join(lost))
    with pytest.raises(ConfigError, match=f"the line before line {old + 4} got lost"):
        open_study(journal, n_trials=4)


def test_importances_come_from_the_complete_trials(journal: Journal) -> None:
    study = open_study(journal, n_trials=30)
    objectives = ("accuracy", "latency")
    assert importances(study.records, objectives) == {}
    assert all(record.outcome == "complete" for record in trials_of(study, lab(), FakeEngine()))
    found = importances(study.records, objectives)
    assert set(found) == {"accuracy", "latency"}
    assert next(iter(found["latency"])) in ("prune_ratio", "bits")


def test_a_record_of_another_version_is_refused_by_name(journal: Journal) -> None:
    list(trials_of(open_study(journal, n_trials=2), lab(), FakeEngine()))
    journal.path.write_text(without_sums(journal.path).replace("outcome", "result"))
    with pytest.raises(ConfigError, match=r"another version wrote it \(ValidationError\)"):
        open_study(journal)


@pytest.mark.parametrize("other", ["nobody", "another deployment", "a later trial"])
def test_a_deployment_of_no_network_is_damage(journal: Journal, other: str) -> None:
    records = list(trials_of(open_study(journal, n_trials=20), lab(), FakeEngine(), policy=POLICY))
    deployed = [record for record in records if record.student_of is not None]
    first, last = deployed[0], deployed[-1]
    wrong = {"nobody": 77, "another deployment": first.number, "a later trial": last.number + 1}
    lines = without_sums(journal.path).splitlines(keepends=True)
    right = f'student_of\\":{last.student_of},'
    (at,) = [n for n, line in enumerate(lines) if f'number\\":{last.number},' in line]
    assert right in lines[at]
    lines[at] = lines[at].replace(right, f'student_of\\":{wrong[other]},')
    journal.path.write_text("".join(lines))
    with pytest.raises(ConfigError, match=r"another version wrote it \(ValueError\)"):
        open_study(journal, n_trials=20)


@pytest.mark.parametrize("damage", ['"much"', "null", "[1.0]"])
def test_a_damaged_constraint_is_refused_by_name(journal: Journal, damage: str) -> None:
    limited = lab(max_accuracy_drop=0.06)
    list(trials_of(open_study(journal, n_trials=4), limited, FakeEngine()))
    text = without_sums(journal.path)
    harmed = re.sub(r'("constraints:max_accuracy_drop": ?)[-\d.e]+', rf"\g<1>{damage}", text)
    assert harmed != text
    journal.path.write_text(harmed)
    with pytest.raises(ConfigError, match=r"s\.journal: is damaged"):
        open_study(journal)


@pytest.mark.parametrize(
    ("format_number", "said"),
    [
        (None, "one without a number"),
        (OWN_FORMAT - 1, f"{OWN_FORMAT - 1}"),
        (OWN_FORMAT + 1, f"{OWN_FORMAT + 1}"),
        (f"{OWN_FORMAT}", f"{OWN_FORMAT}"),
    ],
)
def test_a_study_in_another_versions_format_is_refused(
    journal: Journal, format_number: object, said: str
) -> None:
    study = open_study(journal, n_trials=2)
    study.keep_lab(lab(), "")
    list(trials_of(study, lab(), FakeEngine()))
    kept = optuna.load_study(study_name="s", storage=journal.storage())
    kept.set_user_attr("format", format_number)
    journals = Journals(journal.path.parent)
    told = rf"\(its format is {said}, this version's {OWN_FORMAT}\)"
    refused = rf"s\.journal: another version .* {told}"
    with pytest.raises(ConfigError, match=refused):
        open_study(journal, n_trials=4)
    with pytest.raises(ConfigError, match=refused):
        read_archive(journals, "s", "study")
    with pytest.raises(ConfigError, match=refused):
        earlier_points(journals, ["s"], limits())
    kept.set_user_attr("format", OWN_FORMAT)
    assert open_study(journal, n_trials=4).records == study.records


def test_a_dimension_that_no_package_adds_any_more_is_named(journal: Journal) -> None:
    settings = {"space": 1, "space.share": {"low": 0.1, "high": 1.0}}
    list(trials_of(open_study(journal, n_trials=1, settings=settings), lab(), FakeEngine()))
    with pytest.raises(ConfigError, match=r"space\.share=.*which no installed package adds"):
        open_study(journal, settings={"space": 1})


def test_a_study_goes_on_without_what_a_package_added_since(journal: Journal) -> None:
    where, share = space(), Range(0.1, 1.0)
    added = Dimension("share", "compression", lambda cores: share, 1.0, "share", "share {}")
    wider = Space({**where.axes, "share": share}, (*where.dimensions, added))
    begun = {f"space.{name}": axis.describe() for name, axis in where.axes.items()}
    first = list(trials_of(open_study(journal, 9, where, begun), lab(), FakeEngine()))
    study = open_study(journal, 14, wider, {**begun, "space.share": share.describe()})
    later = list(trials_of(study, lab(), FakeEngine()))
    assert len(first) == 9
    assert len(later) == 5
    assert all(where.contains(record.point) for record in later)


def test_a_study_that_was_killed_before_its_format_was_written_begins(journal: Journal) -> None:
    optuna.create_study(storage=journal.storage(), study_name="s", directions=["minimize"] * 2)
    assert len(list(trials_of(open_study(journal, n_trials=2), lab(), FakeEngine()))) == 2


def test_a_study_does_not_go_on_with_another_teacher(journal: Journal) -> None:
    study = open_study(journal, n_trials=2)
    study.keep_lab(lab(), "")
    one = lab()
    other = replace(
        one.teacher.network, weights=replace(one.teacher.network.weights, sha256="0" * 64)
    )
    study.keep_lab(replace(one, teacher=replace(one.teacher, network=other)), "")
    study.keep_lab(one, "")  # without trials nothing binds
    list(trials_of(study, one, FakeEngine()))
    again = open_study(journal, n_trials=3)
    again.keep_lab(replace(one, reference_accuracy=0.5), "")
    for changed in (
        replace(one, teacher=replace(one.teacher, network=other)),
        replace(one, placement=replace(one.placement, precision="bfloat16")),
    ):
        with pytest.raises(
            ConfigError, match="begun with another teacher, or trained in another p"
        ):
            again.keep_lab(changed, "")


def test_a_study_is_told_from_others_of_its_name(tmp_path: Path) -> None:
    identities = []
    for folder in ("a", "a", "b"):
        with Journal(tmp_path / folder, "s") as journal:
            identities.append(open_study(journal).identity)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_trials_that_end_before_their_accuracy_is_known_do_not_confuse_samplers(
    journal: Journal, sampler: SamplerConfig
) -> None:
    limits = {"max_latency_ms": 0.5, "max_accuracy_drop": 0.2}
    config = StudyConfig(name="s", n_trials=14, timeout_s=None, warm_start=(), seed=3)
    study = Study(journal, config, space(), ("latency", "size"), {})
    records = list(trials_of(study, lab(**limits), FakeEngine(), sampler=sampler))
    assert {r.outcome for r in records} == {"complete", "infeasible"}
    unknown = {r.number for r in records if not isinstance(r, ScoredTrial)}
    assert unknown
    pruned = {t.number for t in _trials(journal) if t.state == TrialState.PRUNED}
    assert pruned == unknown


# ---- saving training


def asked_and_others(records: list[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
    asked = [record for record in records if record.student_of is None]
    return asked, [record for record in records if record.student_of is not None]


def test_a_student_is_deployed_otherwise_without_further_training(journal: Journal) -> None:
    policy = PolicyConfig(latency_first=False, eta=None, deployments=3)
    engine = FakeEngine()
    records = list(trials_of(open_study(journal, 12), lab(), engine, policy=policy))
    asked, others = asked_and_others(records)
    assert len(asked) == 12
    assert others
    assert [record.number for record in records] == list(range(len(records)))
    for record in others:
        trained = records[record.student_of or 0]
        assert trained.student_of is None
        assert record.point.replaced(
            bits=trained.point.whole("bits"), threads=trained.point.whole("threads")
        ) == (trained.point)
        assert record.point != trained.point
        assert sum(r.student_of == trained.number for r in others) <= 3
    trainings = [s for s in engine.computed if isinstance(s, Finetune) and s.end == 1]
    recipes = {
        (r.point.number("prune_ratio"), r.point.number("learning_rate"))
        for r in asked
        if r.point.number("prune_ratio")
    }
    assert len(trainings) <= len(recipes)
    # Samplers pass over what they did not ask for.
    states = {t.number: t.state for t in _trials(journal)}
    assert {states[record.number] for record in others} == {TrialState.FAIL}
    assert all(record.outcome == "complete" for record in others)


def test_other_deployments_wait_for_the_sweep(journal: Journal) -> None:
    policy = PolicyConfig(latency_first=False, eta=None, deployments=3)
    records = list(trials_of(open_study(journal, 14), lab(), FakeEngine(), policy=policy))
    planned = {0.0, *(cut.prune_ratio for cut in CUTS)}
    last = max(
        r.number
        for r in records
        if r.student_of is None and r.point.number("prune_ratio") in planned
    )
    had: set[tuple[int, int]] = set()
    for record in records[:last]:
        deployment = record.point.whole("bits"), record.point.whole("threads")
        if record.student_of is not None:
            assert deployment not in had
            # Of the original 8 bits alone: they come right after it.
            assert record.point.number("prune_ratio") > 0 or (
                record.number,
                record.point.whole("bits"),
            ) == (
                1,
                8,
            )
        if record.point.number("prune_ratio") > 0:
            had.add(deployment)
    assert any(record.student_of is not None for record in records[last:])


def test_a_network_that_cannot_lose_channels_is_never_pruned(journal: Journal) -> None:
    policy = PolicyConfig(latency_first=False, eta=None, deployments=3)
    ready = lab()
    whole = replace(ready, cuts=(), rate=None, bench=replace(ready.bench, prunes=False))
    engine = FakeEngine()
    records = list(trials_of(open_study(journal, 8), whole, engine, policy=policy))
    assert {record.point.number("prune_ratio") for record in records} == {0.0}
    assert all(record.outcome == "complete" for record in records)
    assert {step.ratio for step in engine.computed if isinstance(step, Prune)} <= {0.0}
    assert (
        len({(record.point.whole("bits"), record.point.whole("threads")) for record in records}) > 2
    )


def test_what_only_saves_storage_is_deployed_only_where_size_counts(tmp_path: Path) -> None:
    policy = PolicyConfig(latency_first=False, eta=None, deployments=9)
    found = {}
    for objectives in (("accuracy", "latency"), ("accuracy", "latency", "size")):
        with Journal(tmp_path / objectives[-1], "s") as journal:
            config = StudyConfig(name="s", n_trials=1, timeout_s=None, warm_start=(), seed=3)
            study = Study(journal, config, space(), objectives, {})
            found[objectives[-1]] = {
                r.point.whole("bits") for r in trials_of(study, lab(), Sized(), policy)
            }
    assert 4 not in found["latency"]
    assert 4 in found["size"]


def test_an_original_that_breaks_a_limit_is_tried_in_8_bits_first(journal: Journal) -> None:
    # FakeEngine: the original takes 0.8 ms with two threads, in 8 bits a quarter of it.
    policy = PolicyConfig(latency_first=False, eta=None, deployments=3)
    limited = lab(max_latency_ms=0.5)
    records = list(trials_of(open_study(journal, 3), limited, FakeEngine(), policy=policy))
    assert [record.outcome for record in records[:2]] == ["infeasible", "complete"]
    assert (records[1].student_of, records[1].point.whole("bits")) == (0, 8)


class Sized(FakeEngine):
    """A device on which bits change the size alone."""

    def _answer(self, step: Step[Any]) -> Any:
        return measurement(1.0) if isinstance(step, Measure) else super()._answer(step)


class SlowInIntegers(FakeEngine):
    """A device on which 8 bits take twice as long as the original."""

    def _answer(self, step: Step[Any]) -> Any:
        if isinstance(step, Measure) and step.deployable.bits == 8:
            return measurement(2.0)
        return super()._answer(step)


def test_what_is_too_slow_whatever_its_accuracy_is_not_trained(journal: Journal) -> None:
    policy = PolicyConfig(latency_first=True, eta=None, deployments=0)
    engine = SlowInIntegers()
    records = list(trials_of(open_study(journal, 9), lab(), engine, policy=policy))
    slow = [r for r in records if r.point.whole("bits") == 8 and r.point.number("prune_ratio") > 0]
    assert {r.outcome for r in slow} == {"stopped"}
    assert {r.reason for r in slow} == {"not trained: cannot reach the front whatever its accuracy"}
    assert all(isinstance(r, StoppedTrial) for r in slow)
    trained = {step.start.parameters for step in engine.computed if isinstance(step, Finetune)}
    complete = [record for record in records if isinstance(record, CompleteTrial)]
    fast = [record for record in complete if record.point.number("prune_ratio") > 0]
    assert trained == {record.figures.parameters for record in fast}
    pruned = {t.number for t in _trials(journal) if t.state == TrialState.PRUNED}
    assert pruned == {r.number for r in slow}


class Erratic(FakeEngine):
    """Students are as accurate at every rung as their learning rate says."""

    def _answer(self, step: Step[Any]) -> Any:
        answer = super()._answer(step)
        if isinstance(step, Finetune):
            return replace(answer, val_accuracy=0.9 - abs(step.learning_rate - 0.01))
        return answer


def test_early_stopping_keeps_the_best_of_every_rung(journal: Journal) -> None:
    policy = PolicyConfig(latency_first=False, eta=2.0, deployments=0)
    records = list(trials_of(open_study(journal, 30), lab(), Erratic(), policy=policy))
    stopped = [r for r in records if r.outcome == "stopped"]
    assert stopped
    assert all(r.reason.startswith("behind at 50% of its training") for r in stopped)
    assert all(isinstance(r.figures, Progress) for r in stopped)
    assert all(r.deployable is None for r in stopped)
    reached = {
        t.number: dict(map(tuple, t.user_attrs[RUNGS]))
        for t in _trials(journal)
        if RUNGS in t.user_attrs
    }
    assert {r.number for r in stopped} <= set(reached)
    # Whatever was stopped, half of those that had come so far were no worse.
    for record in stopped:
        assert list(reached[record.number]) == [0.5]
        so_far = [rungs[0.5] for number, rungs in reached.items() if number <= record.number]
        assert not survives(so_far, len(so_far) - 1, 2.0)


def test_early_stopping_has_a_switch(journal: Journal) -> None:
    records = list(trials_of(open_study(journal, 20), lab(), Erratic(), policy=PLAIN))
    assert {record.outcome for record in records} == {"complete"}


def test_other_studies_fronts_are_tried_early(tmp_path: Path) -> None:
    with Journal(tmp_path, "s") as journal:
        begun = open_study(journal, 25)
        begun.keep_lab(lab(), "")
        first = list(trials_of(begun, lab(), FakeEngine()))
    earlier = earlier_points(Journals(tmp_path), ["s"], limits())
    assert earlier
    assert set(earlier) <= {record.point for record in first}
    # The original's 0.95 of two classes: from 0.9185 on.
    picky = earlier_points(Journals(tmp_path), ["s"], limits(min_accuracy_share=0.93))
    scored = [record for record in first if isinstance(record, ScoredTrial)]
    good = {record.point for record in scored if record.figures.val_accuracy >= 0.9185}
    assert set(picky) <= good
    assert 0 < len(picky) < len(earlier)
    with Journal(tmp_path / "later", "s") as journal:
        config = StudyConfig(name="s", n_trials=40, timeout_s=None, warm_start=("s",), seed=99)
        narrow = space(bits=[32], threads=[1])
        study = Study(journal, config, narrow, ("accuracy", "latency"), {})
        found = trials_of(study, lab(), FakeEngine(), earlier=earlier)
        second = [record.point for record in found]
    moved = [narrow.nearest(point) for point in earlier]
    assert set(moved) <= set(second[: len(moved) + 9])


def warmed(
    journal: Journal, n_trials: int, earlier: list[Point], where: Space, there: Lab
) -> list[TrialRecord]:
    config = StudyConfig(name="s", n_trials=n_trials, timeout_s=None, warm_start=(), seed=3)
    names = ("accuracy", "latency")
    study = Study(journal, config, where, names, {})
    return list(trials_of(study, there, FakeEngine(), POLICY, earlier=earlier))


def test_a_study_that_was_killed_before_its_first_line_has_no_points(tmp_path: Path) -> None:
    (tmp_path / "s.journal").touch()
    assert earlier_points(Journals(tmp_path), ["s"], limits()) == []


def test_earlier_points_are_tried_as_they_are_also_when_they_come_late(journal: Journal) -> None:
    point = make_point(0.55, 8, 4.0, 0.5, "sgd", 0.01, "cosine", 2)
    late = point.replaced(prune_ratio=0.65, threads=1)
    assert point in [r.point for r in warmed(journal, 11, [point], space(), lab())]
    assert late in [r.point for r in warmed(journal, 12, [late], space(), lab())]


def test_the_closing_round_alone_tries_nothing(journal: Journal) -> None:
    list(trials_of(open_study(journal, 3), lab(), FakeEngine(), policy=PLAIN))
    study = open_study(journal, 0)
    assert list(trials_of(study, lab(), FakeEngine(), POLICY)) == []
    assert len(study.records) == 3


def test_whether_bits_are_sampled_stays_as_it_was_begun(journal: Journal) -> None:
    list(trials_of(open_study(journal, 12), lab(), FakeEngine(), policy=PLAIN))
    list(trials_of(open_study(journal, 30), lab(), FakeEngine(), policy=POLICY))
    asked = [t for t in _trials(journal) if t.state == TrialState.COMPLETE]
    assert {frozenset(t.params) for t in asked} == {frozenset(space().distributions())}


def test_a_student_spoilt_by_few_bits_is_deployed_in_more(journal: Journal) -> None:
    limited = lab(max_accuracy_drop=0.07)  # FakeEngine: 8 bits of 4 kB lose more, 32 bits less
    where = space(bits=[32, 8], prune_ratio=0.6)
    spoilt = make_point(0.6, 8, 4.0, 0.5, "sgd", 0.01, "cosine", 2)
    records = warmed(journal, 11, [spoilt], where, limited)
    (bad,) = [record for record in records if record.point == spoilt]
    assert bad.outcome == "infeasible"
    saved = [record.point for record in records if record.student_of == bad.number]
    assert spoilt.replaced(bits=32) in saved


def test_a_study_that_is_not_there_cannot_warm_another(tmp_path: Path) -> None:
    with Journal(tmp_path, "s") as journal:
        open_study(journal, 1)
    with pytest.raises(ConfigError, match=r"study\.warm_start=t: .*no such study; there are s"):
        earlier_points(Journals(tmp_path), ["t"], limits())


@pytest.mark.parametrize(
    "changes",
    [{"bits": 8}, {"bits": [8, 4], "threads": 1}, {"prune_ratio": {"low": 0.3, "high": 0.9}}],
)
def test_chosen_deployments_stay_in_the_space(journal: Journal, changes: dict[str, Any]) -> None:
    where = space(**changes)
    records = list(
        trials_of(open_study(journal, 15, where=where), lab(), FakeEngine(), policy=POLICY)
    )
    assert all(where.contains(record.point) for record in records[1:])


def test_bits_are_sampled_where_they_count_for_more_than_latency(journal: Journal) -> None:
    small = lab(max_size_bytes=20_000)
    records = list(trials_of(open_study(journal, 30), small, FakeEngine(), policy=POLICY))
    assert len({record.point.whole("bits") for record in records}) > 2
    assert any(record.outcome == "complete" for record in records)
