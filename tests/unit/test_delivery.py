"""Bringing MLflow up to date beside a search, with a tracker that fails on demand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.config.places import TrackingConfig
from search.errors import ConfigError, StorageLost, StudyTaken, TrackingLost, TrackingSilent
from search.records.closing import Closing
from search.records.files import ReadFile
from search.records.measurement import Canary, Interval
from search.records.trial import TrialRecord
from search.tracking.delivery import LONGEST_PAUSE_S, Delivery, pause_s
from search.tracking.snapshot import Snapshot
from search.tracking.tracker import Claim, Tracker
from tests.plants import plant, plant_finalist

SERVER = TrackingConfig(uri="http://me:secret@host:1", timeout_s=0.1)
CLOSING = Closing(2, (plant_finalist(plant(1)),), ())
DEADLINE_S = 20.0
FOR_EVER_S = 3600.0  # which the test's own time-out cuts off


Said = Callable[[], list[str]]


class ArtifactStore:
    """What MLflow holds, however often it is opened; ``fail`` is called before anything else."""

    def __init__(self) -> None:
        self.trials: list[int] = []
        self.seen: list[Any] = []
        self.opened = 0
        self.status = ""
        self.fail: Callable[[], None] = lambda: None
        self.snapshot = Snapshot("s", "s", (), "", {}, (), (), {}, None, {}, "")

    def tell(self, delivery: Delivery, **changes: Any) -> None:
        """Changes the study, and has that delivered."""
        self.snapshot = replace(self.snapshot, **changes)
        delivery.notify(len(self.snapshot.records))

    def open(self, snapshot: Snapshot, claim: Claim) -> Tracker:
        self.fail()
        self.opened += 1
        return FakeTracker(self)


class FakeTracker(Tracker):
    def __init__(self, artifacts: ArtifactStore) -> None:
        self._shelf = artifacts

    @property
    def logged(self) -> frozenset[int]:
        return frozenset(self._shelf.trials)

    @property
    def location(self) -> str:
        return "/#/run"

    def log_device(self, tags: Mapping[str, str], canaries: Sequence[Canary]) -> None:
        self._shelf.seen.append((dict(tags), len(canaries)))

    def keep_front(self, closing: Closing, explanations: str) -> None:
        pass

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, ReadFile]) -> None:
        for record in records:
            if record.number not in self._shelf.trials:
                self._shelf.fail()
                self._shelf.trials.append(record.number)

    def log_finalists(
        self, closing: Closing, models: Mapping[int, ReadFile], explanations: str = ""
    ) -> None:
        self._shelf.seen.append((closing, dict(models), explanations))

    def end(self, status: str | None, ended_at: float | None = None) -> None:
        self._shelf.fail()
        assert status is not None
        self._shelf.status = status


@pytest.fixture
def artifacts() -> ArtifactStore:
    return ArtifactStore()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what the user reads."""
    caplog.set_level(logging.INFO)
    return lambda: caplog.messages


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    until(lambda: all(thread.name != "tracking" for thread in threading.enumerate()))


def until(holds: Callable[[], bool]) -> None:
    """Waits for another thread."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hang_until(gate: threading.Event) -> Callable[[], None]:
    """Returns a failure that lasts, as a server's that takes requests and never answers."""

    def fail() -> None:
        gate.wait(DEADLINE_S)

    return fail


def break_off(
    artifacts: ArtifactStore, delivery: Delivery, raised: type[BaseException] | BaseException
) -> None:
    """Finds a trial and breaks off."""
    with delivery:
        artifacts.tell(delivery, records=records(1))
        raise raised


def deliver(artifacts: ArtifactStore, config: TrackingConfig = SERVER, **changes: Any) -> Delivery:
    given = {
        "look": lambda: artifacts.snapshot,
        "pause": lambda attempt: 0.01,
        "note_ending": lambda status: None,
        **changes,
    }
    return Delivery(
        connect=artifacts.open,
        config=config,
        state=Path("mlruns"),
        arguments="study=s",
        **given,
    )


def patient(uri: str | None = SERVER.uri) -> TrackingConfig:
    return TrackingConfig(uri=uri, timeout_s=DEADLINE_S / 3)


def records(count: int) -> tuple[TrialRecord, ...]:
    return tuple(plant(number) for number in range(count))


def test_everything_arrives_in_order(artifacts: ArtifactStore) -> None:
    canary = Canary(0, Interval(1.0, 0.99, 1.01), "resolved")
    notes: list[str] = []
    with deliver(artifacts, patient(), note_ending=notes.append) as delivery:
        artifacts.tell(delivery, tags={"device": "local"}, canaries=(canary,))
        for count in range(5):
            artifacts.tell(delivery, records=records(count))
        artifacts.tell(delivery, closing=CLOSING, final_models={1: bytes}, explanations="told")
        assert notes == ["KILLED"]
    assert artifacts.trials == [0, 1, 2, 3]
    assert artifacts.seen[-2:] == [({"device": "local"}, 1), (CLOSING, {1: bytes}, "told")]
    assert (artifacts.opened, artifacts.status, notes) == (1, "FINISHED", ["KILLED", "FINISHED"])
    assert delivery.location == "/#/run"


def test_of_what_was_handed_over_the_newest_counts(artifacts: ArtifactStore) -> None:
    gate = threading.Event()
    artifacts.fail = hang_until(gate)
    with deliver(artifacts, patient()) as delivery:
        for count in range(50):
            artifacts.tell(delivery, records=records(count))
        assert artifacts.opened == 0, "the search waited"
        gate.set()
    assert artifacts.trials == list(range(49))
    assert len(artifacts.seen) <= 3


@pytest.mark.parametrize(
    "error",
    [
        TrackingLost("tracking.uri='http://me:***@host:1': stopped answering (500)"),
        TrackingSilent("tracking.uri='http://me:secret@host:1': cannot be used (500)", "mend it"),
        ConfigError("the file is no database"),
        OSError(28, "No space left on device"),
    ],
)
def test_an_outage_is_said_once_and_its_end(
    error: Exception, artifacts: ArtifactStore, said: Said
) -> None:
    attempts: list[int] = []

    def fail() -> None:
        if len(attempts) < 3:
            raise error

    def pause(attempt: int) -> float:
        attempts.append(attempt)
        return 0.0

    artifacts.fail = fail
    with deliver(artifacts, patient(), pause=pause) as delivery:
        artifacts.tell(delivery, records=records(2))
        until(lambda: artifacts.trials == [0, 1])
        artifacts.tell(delivery, records=records(3))
    assert attempts == [1, 2, 3]
    assert (artifacts.trials, artifacts.opened, artifacts.status) == ([0, 1, 2], 1, "FINISHED")
    assert said()[0].endswith(
        "; the search goes on, and MLflow gets its trials when it answers again"
    )
    assert "secret" not in said()[0]
    assert "mend it" not in said()[0]
    assert [line.partition(",")[0] for line in said()[1:]] == ["MLflow answers again"]


def test_an_outage_of_the_studys_own_database_passes_too(
    artifacts: ArtifactStore, said: Said
) -> None:
    outages = [StorageLost("storage.url: the connection broke; finished trials are kept")]

    def look() -> Snapshot:
        if outages:
            raise outages.pop()
        return artifacts.snapshot

    with deliver(artifacts, patient(), look=look) as delivery:
        artifacts.tell(delivery, records=records(1))
        until(lambda: artifacts.trials == [0])
        artifacts.tell(delivery, records=records(2))
    delivery.check()
    assert artifacts.trials == [0, 1]
    assert artifacts.status == "FINISHED"
    assert sum("the connection broke" in line for line in said()) == 1


def test_it_begins_anew_where_it_was_cut_off(artifacts: ArtifactStore) -> None:
    fails = iter([False, False, True])

    def fail() -> None:
        if next(fails, False):
            raise TrackingLost("gone")

    artifacts.fail = fail
    with deliver(artifacts, patient()) as delivery:
        artifacts.tell(delivery, records=records(4))
    assert (artifacts.trials, artifacts.opened) == ([0, 1, 2, 3], 2)


def test_what_the_user_knows_is_not_said_again(artifacts: ArtifactStore, said: Said) -> None:
    with deliver(artifacts, patient(), is_lost=True) as delivery:
        artifacts.tell(delivery, records=records(1))
    assert said() == ["MLflow answers again, and has 1 trial now"]


def test_pauses_grow() -> None:
    assert [pause_s(attempt) for attempt in range(1, 5)] == [1, 2, 4, 8]
    assert pause_s(50) == LONGEST_PAUSE_S


# ---- the end


@pytest.mark.parametrize(
    ("before", "left"),
    [
        (0, "up to 2 trials are not in MLflow yet"),
        (1, "1 trial is not in MLflow yet"),
        (2, "the study's end is not in MLflow yet"),
    ],
)
def test_the_end_waits_a_bounded_time(
    before: int, left: str, artifacts: ArtifactStore, said: Said
) -> None:
    with deliver(artifacts) as delivery:
        if before:
            artifacts.tell(delivery, records=records(before))
            until(lambda: len(artifacts.trials) == before)

        def fail() -> None:
            raise TrackingLost("gone")

        artifacts.fail = fail
        artifacts.tell(delivery, records=records(2))
    assert said()[-1] == (
        f"{left}; when it answers again: python -m search.sync study=s "
        "'tracking.uri=http://me:***@host:1'"
    )
    assert delivery.location == ("/#/run" if before else "")


def test_a_server_that_hangs_is_left_behind(artifacts: ArtifactStore, said: Said) -> None:
    gate = threading.Event()
    artifacts.fail = hang_until(gate)
    with pytest.raises(KeyboardInterrupt):
        break_off(artifacts, deliver(artifacts), KeyboardInterrupt)
    assert artifacts.opened == 0, "it was waited for"
    gate.set()
    assert "up to 1 trial is not in MLflow yet" in said()[-1]


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt, "KILLED"), (ConfigError, "FAILED")]
)
def test_how_the_study_ended_is_told(
    raised: type[BaseException], status: str, artifacts: ArtifactStore
) -> None:
    notes: list[str] = []
    with pytest.raises(raised):
        break_off(artifacts, deliver(artifacts, patient(), note_ending=notes.append), raised)
    assert (artifacts.status, notes[-1]) == (status, status)


def test_a_study_that_another_process_took_over_is_left_to_it(
    artifacts: ArtifactStore, said: Said
) -> None:
    notes: list[str] = []
    with pytest.raises(StudyTaken):
        break_off(artifacts, deliver(artifacts, patient(), note_ending=notes.append), StudyTaken)
    assert (artifacts.status, notes) == ("", ["KILLED"])
    assert not [line for line in said() if "search.sync" in line]


def test_a_file_that_does_well_is_written_to_its_end(artifacts: ArtifactStore) -> None:
    artifacts.fail = lambda: time.sleep(0.05)
    config = TrackingConfig(uri=None, timeout_s=0.01)
    with deliver(artifacts, config) as delivery:
        artifacts.tell(delivery, records=records(10))
    assert (len(artifacts.trials), artifacts.status) == (10, "FINISHED")


def test_without_trials_to_show_nothing_is_begun(artifacts: ArtifactStore) -> None:
    with deliver(artifacts):
        pass
    assert artifacts.opened == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ConfigError("no")])
def test_an_ending_that_cannot_be_written_does_not_hold_up_what_is_left(
    error: Exception, artifacts: ArtifactStore
) -> None:
    def note(status: str) -> None:
        if status != "KILLED":
            raise error

    delivery = deliver(artifacts, patient(), note_ending=note).__enter__()
    artifacts.tell(delivery, records=records(2))
    with pytest.raises(type(error)):
        delivery.__exit__(None)
    assert (artifacts.trials, artifacts.status) == ([0, 1], "FINISHED")


def test_where_nothing_could_be_written_nothing_more_is(artifacts: ArtifactStore) -> None:
    notes: list[str] = []
    with pytest.raises(OSError, match="full"):
        break_off(
            artifacts, deliver(artifacts, patient(), note_ending=notes.append), OSError("full")
        )
    assert notes == ["KILLED"]


# ---- bugs


def buggy() -> None:
    raise KeyError("run")


def test_a_bug_is_raised_at_the_end(artifacts: ArtifactStore, said: Said) -> None:
    artifacts.fail = buggy
    delivery = deliver(artifacts).__enter__()
    artifacts.tell(delivery, records=records(1))
    until(lambda: bool(said()))
    artifacts.tell(delivery, records=records(2))
    delivery.__exit__(None)
    with pytest.raises(KeyError):
        delivery.check()
    assert said() == ["tracking failed (KeyError: 'run'); the search goes on"]


def test_a_bug_does_not_hide_what_ended_the_study(artifacts: ArtifactStore) -> None:
    artifacts.fail = buggy
    with pytest.raises(ConfigError):
        break_off(artifacts, deliver(artifacts), ConfigError)


def test_at_the_end_a_server_that_comes_back_is_noticed_soon(artifacts: ArtifactStore) -> None:
    asked: list[int] = []
    ended = threading.Event()

    def fail() -> None:
        if not ended.is_set():
            raise TrackingLost("away")

    def pause(attempt: int) -> float:
        asked.append(attempt)
        if asked.count(1) > 1:
            ended.set()  # only now is it back
        return 0.01 if attempt < 5 else DEADLINE_S

    with deliver(artifacts, patient(), pause=pause) as delivery:
        artifacts.tell(delivery, records=records(1))
        until(lambda: artifacts.trials == [0])
        artifacts.fail = fail
        artifacts.tell(delivery, records=records(2))
        until(lambda: asked == [1, 2, 3, 4, 5])  # a pause has begun that outlasts the end
    assert asked == [1, 2, 3, 4, 5, 1]
    assert artifacts.status == "FINISHED"


def lost() -> None:
    raise TrackingLost("away")


def test_at_the_end_a_server_that_never_answered_is_asked_once_more(
    artifacts: ArtifactStore, said: Said
) -> None:
    asked: list[int] = []

    def fail() -> None:
        asked.append(len(asked))
        raise TrackingLost("away")

    artifacts.fail = fail
    long = TrackingConfig(uri=SERVER.uri, timeout_s=FOR_EVER_S)
    with deliver(artifacts, long, pause=lambda _: FOR_EVER_S) as delivery:
        artifacts.tell(delivery, records=records(1))
        until(lambda: asked == [0])
    assert asked == [0, 1]
    told = [line.partition(";")[0] for line in said()]
    assert told == ["away", "up to 1 trial is not in MLflow yet"]


def test_where_nothing_can_be_written_the_end_waits_for_nothing(artifacts: ArtifactStore) -> None:
    def search() -> None:
        with deliver(artifacts, TrackingConfig(uri=None, timeout_s=FOR_EVER_S)) as delivery:
            artifacts.tell(delivery, records=records(1))
            until(lambda: artifacts.trials == [0])
            artifacts.fail = lost
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        search()
