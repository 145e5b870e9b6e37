"""A real tracking server behind a bad connection ends up with what a good one would have given."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError

from search.config.places import TrackingConfig
from search.errors import ConfigError, TrackingSilent
from search.records.files import ReadFile
from search.records.measurement import Canary, Interval
from search.tracking.delivery import Delivery
from search.tracking.server import check_tracking, explained
from search.tracking.snapshot import Snapshot, open_tracker
from search.tracking.tracker import Claim, Tracker
from tests.integration.test_tracking import CLOSING, OBJECTIVES, RECORDS
from tests.proxy import Mood, Proxy, proxied

Port = Callable[[], AbstractContextManager[int]]
CANARY = Canary(0, Interval(1.0, 0.98, 1.02), "resolved")
CREATE, UPDATE = "/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/runs/update"
BATCH, TAG = "/api/2.0/mlflow/runs/log-batch", "/api/2.0/mlflow/runs/set-tag"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ReadFile]:
    """Files that stand for the ONNX models of complete trials."""
    folder = tmp_path_factory.mktemp("models")
    paths = {number: folder / f"{number}.onnx" for number in range(4)}
    for number, path in paths.items():
        path.write_bytes(f"model of {number}".encode())
    return {number: path.read_bytes for number, path in paths.items()}


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with proxied(server) as running:
        yield running


def search(
    address: str, study: str, models: dict[int, ReadFile], timeout_s: float = 2.0
) -> set[str]:
    """Hands over a whole study as a search does; returns the threads that spoke to MLflow."""
    config, spoke = TrackingConfig(uri=address, timeout_s=timeout_s), set[str]()

    # What the ledger holds; of its lists the search makes longer ones.
    held = Snapshot(
        study, study, OBJECTIVES, "study: {}\n", {"device": "local", "device.round_to": "8"},
        (CANARY,), (), models, None, models, "<p>told</p>",
    )  # fmt: skip

    def connect(snapshot: Snapshot, claim: Claim) -> Tracker:
        spoke.add(threading.current_thread().name)
        return open_tracker(snapshot, config, Path("none"), "", claim, is_running=True)

    def note(status: str) -> None:
        pass

    with Delivery(
        lambda: held, connect, config, Path("none"), "study=" + study, note, pause=lambda _: 0.2
    ) as delivery:
        # All is delivered before the end: that has its own bounds.
        for count in range(1, len(RECORDS) + 1):
            held = replace(held, records=tuple(RECORDS[:count]))
            delivery.notify(count)
            time.sleep(0.3)
        held = replace(held, closing=CLOSING)
        delivery.notify(len(RECORDS))
        deadline = time.monotonic() + 60
        client = MlflowClient(address)
        while not _has(client, study) and time.monotonic() < deadline:
            time.sleep(0.5)
    return spoke


def _has(client: MlflowClient, study: str) -> bool:
    """Whether the closing round is there, which comes last."""
    try:
        return any("closing.sha256" in run.data.tags for run in runs(client, study))
    except Exception:  # the connection is as bad for this client
        return False


def runs(client: MlflowClient, study: str) -> list[Run]:
    experiment = client.get_experiment_by_name(study)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def content(server: str, study: str, folder: Path) -> dict[str, Any]:
    """Returns all that MLflow shows of a study, with names for identifiers; fails on twins."""
    client = MlflowClient(server)
    found = runs(client, study)
    names = {run.info.run_id: run.info.run_name for run in found}
    assert Counter(names.values()).most_common(1)[0][1] == 1, names

    def named(text: str) -> str:
        for run_id, name in names.items():
            text = text.replace(run_id, name)
        text = text.replace(study, "STUDY")
        return re.sub(r"/experiments/\d+", "/experiments/N", text)

    def history(run: Run) -> dict[str, list[tuple[int, float]]]:
        return {
            key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }

    def files(run: Run) -> dict[str, str]:
        aside = folder / study / run.info.run_id
        aside.mkdir(parents=True)
        root = Path(client.download_artifacts(run.info.run_id, "", str(aside)))
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        # Pictures have the study's name in them.
        read = {path: "" if path.suffix == ".png" else path.read_text("utf-8") for path in paths}
        return {str(path.relative_to(root)): named(text) for path, text in read.items()}

    return {
        named(run.info.run_name): {
            "status": run.info.status,
            "params": run.data.params,
            "tags": {key: named(value) for key, value in run.data.tags.items()},
            "metrics": history(run),
            "files": files(run),
        }
        for run in found
    }


@pytest.fixture(scope="module")
def undisturbed(
    server: str, models: dict[int, ReadFile], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a good connection gives."""
    search(server, "study-of-0", models)
    found = content(server, "study-of-0", tmp_path_factory.mktemp("files"))
    assert sorted(found) == ["STUDY", *(f"trial {number}" for number in range(6))]
    assert {run["status"] for run in found.values()} == {"FINISHED", "FAILED"}
    assert "final/model.onnx" in found["trial 1"]["files"]
    return found


def in_the_middle() -> Callable[[str, int], Mood]:
    """A dozen requests fail after the second trial has begun, in one way and then in another."""
    asked: Counter[str] = Counter()

    def choose(path: str, count: int) -> Mood:
        asked["runs"] += path == CREATE
        asked["since"] += asked["runs"] > 2
        if 2 < asked["since"] < 14:
            return "down" if asked["since"] < 8 else "failing"
        return "fine"

    return choose


def unconfirmed(path: str, count: int) -> Mood:
    """Some requests are done but not confirmed: the study's run and a trial's, its end, a tag."""
    lost = {CREATE: (1, 4), UPDATE: (2,), BATCH: (5,), TAG: (3,)}
    return "lost" if count in lost.get(path, ()) else "fine"


def slow_at_first(path: str, count: int) -> Mood:
    """Some answers take as long as a burdened server's."""
    return "slow" if path == CREATE and count < 3 else "fine"


@pytest.mark.parametrize(
    ("study", "mood", "suffered"),
    [
        ("study-of-1", in_the_middle(), ("down", "failing")),
        ("study-of-2", unconfirmed, ("lost",)),
        ("study-of-3", slow_at_first, ("slow",)),
    ],
)
def test_an_outage_leaves_no_trace(
    study: str,
    mood: Callable[[str, int], Mood],
    suffered: tuple[Mood, ...],
    proxy: Proxy,
    server: str,
    undisturbed: dict[str, Any],
    models: dict[int, ReadFile],
    tmp_path: Path,
) -> None:
    proxy.mood = mood
    assert search(proxy.address, study, models, timeout_s=5.0) == {"tracking"}
    assert min(proxy.moods[mood] for mood in suffered) >= 2
    found = content(server, study, tmp_path)
    for name, run in undisturbed.items():
        for part, expected in run.items():
            assert found[name][part] == expected, (name, part)
    assert sorted(found) == sorted(undisturbed)


def test_a_slow_server_does_not_hold_the_end_up(
    proxy: Proxy, server: str, models: dict[int, ReadFile]
) -> None:
    proxy.mood = lambda path, count: "slow"
    config = TrackingConfig(uri=proxy.address, timeout_s=5.0)

    held = Snapshot("slow", "slow", OBJECTIVES, "", {}, (), tuple(RECORDS), models, None, {}, "")

    def connect(snapshot: Snapshot, claim: Claim) -> Tracker:
        return open_tracker(snapshot, config, Path("none"), "", is_running=True)

    def interrupted() -> None:
        with Delivery(
            lambda: held, connect, config, Path("none"), "study=slow", lambda _: None
        ) as delivery:
            delivery.notify(len(RECORDS))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # Each takes several slow answers: whoever waits for them finds all trials there.
    assert len(runs(MlflowClient(server), "slow")) <= len(RECORDS)
    proxy.mood = lambda path, count: "down"
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(60)
            assert not thread.is_alive(), "it goes on"


# ---- at the beginning


@contextmanager
def closed_port() -> Iterator[int]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    yield port


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@contextmanager
def failing_server() -> Iterator[int]:
    with proxied("http://127.0.0.1:1") as proxy:
        proxy.mood = lambda path, count: "failing"
        yield proxy.server_port


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (closed_port, "(nothing listens there)"),
        (silent_server, "(no answer within 1 s)"),
        (failing_server, "(it answers with errors of its own)"),
    ],
)
def test_a_server_that_is_away_is_no_mistake(server: Port, says: str, tmp_path: Path) -> None:
    with server() as port:
        config = TrackingConfig(uri=f"http://me:secret@127.0.0.1:{port}", timeout_s=1.0)
        with pytest.raises(TrackingSilent) as caught:
            check_tracking(config, tmp_path, "s")
    what = f"tracking.uri='http://me:***@127.0.0.1:{port}': cannot be used {says}"
    assert caught.value.what == what
    assert str(caught.value).startswith(f"{what}; mend it, or leave tracking.uri=null")


@pytest.mark.parametrize(
    ("uri", "error", "silent"),
    [
        ("postgresql://host/x", OperationalError("", {}, Exception("no route to host")), True),
        ("postgresql://host/x", MlflowException("busy", TEMPORARILY_UNAVAILABLE), True),
        ("postgresql://host/x", MlflowException("out-of-date database schema"), False),
        ("postgresql://host/x", ImportError("No module named 'psycopg2'"), False),
        ("sqlite:///x.db", OperationalError("", {}, Exception("unable to open")), False),
        ("https://host", MlflowException("SSLError: certificate verify failed"), False),
        ("http://host", MlflowException("not yours", PERMISSION_DENIED), False),
    ],
)
def test_what_a_later_attempt_could_mend(
    uri: str, error: Exception, silent: bool, tmp_path: Path
) -> None:
    config = TrackingConfig(uri=uri, timeout_s=1.0)
    with pytest.raises(ConfigError) as caught, explained(config, tmp_path):
        raise error
    assert isinstance(caught.value, TrackingSilent) == silent
