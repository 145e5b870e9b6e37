"""MLflow is whole whatever the working directory is called, and nothing lies beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from sqlalchemy import URL

from search.config.places import TrackingConfig
from search.errors import ConfigError
from search.tracking.registry import Registry
from search.tracking.server import address, check_tracking
from search.tracking.tracker import Tracker
from tests.mlflow_server import START_S
from tests.plants import plant

NAMES = [
    "x?mode=memory", "a%41b", "%2e%2e", "100% $HOME", "a#b @b:c", "it's a+b;c&d=e", 'é\u4e2d"',
    "a\\b\nc",
]  # fmt: skip
ALL_AT_ONCE = "a?b=c %41#'\"é"


def logged(state: Path, uri: str | None = None) -> str:
    """Logs a trial as a search does; returns its run."""
    config = TrackingConfig(uri=uri, timeout_s=20.0)
    check_tracking(config, state, "s")
    tracker = Tracker(config, state, "s", "mine", ("accuracy", "latency"), {}, "")
    tracker.log_trials([plant(0)], {0: lambda: b"a model"})
    tracker.end("FINISHED")
    found = MlflowClient(address(config, state)).search_experiments(filter_string="name = 's'")
    client = MlflowClient(address(config, state))
    (run,) = client.search_runs([found[0].experiment_id], "tags.kind = 'trial'")
    return str(run.info.run_id)


def begin(place: Path) -> Path:
    """Makes a working directory with the folder of its state."""
    state = place / "mlruns"
    state.mkdir(parents=True)
    return state


@pytest.mark.parametrize("name", NAMES)
def test_everything_lies_in_the_folder(
    name: str, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(tmp_path / name)
    monkeypatch.chdir(state.parent)
    shutil.copy(empty_database, state / "mlflow.db")
    run_id = logged(state)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in (tmp_path / name).iterdir()] == ["mlruns"]
    kept = state / "artifacts" / "s" / run_id / "artifacts" / "model.onnx"
    assert kept.read_bytes() == b"a model"
    client = MlflowClient(URL.create("sqlite", database=f"{state}/mlflow.db").render_as_string())
    assert client.list_artifacts(run_id)[0].path == "model.onnx"


def test_artifacts_beside_a_database_of_ones_own(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin(tmp_path / "a%41b")
    monkeypatch.chdir(state.parent)
    shutil.copy(empty_database, tmp_path / "own.db")
    run_id = logged(state, f"sqlite:///{tmp_path}/own.db")
    assert {path.name for path in tmp_path.iterdir()} == {"a%41b", "own.db"}
    assert (state / "artifacts" / "s" / run_id / "artifacts" / "model.onnx").is_file()


def test_a_registered_model_whose_files_were_removed(tmp_path: Path, empty_database: Path) -> None:
    state = begin(tmp_path / ALL_AT_ONCE)
    shutil.copy(empty_database, state / "mlflow.db")
    config, files = TrackingConfig(uri=None, timeout_s=20.0), state / "artifacts" / "m"
    files.mkdir(parents=True)
    (files / "model.onnx").write_bytes(b"a model")
    client = MlflowClient(address(config, state))
    client.create_registered_model("s")
    client.create_model_version("s", files.as_uri())
    registry = Registry(config, state, "s")
    assert registry.model_of("1") == b"a model"
    (files / "model.onnx").unlink()
    with pytest.raises(ConfigError, match="models:/s/1: MLflow has its files no more"):
        registry.model_of("1")


def test_a_name_that_no_address_can_hold_is_refused(tmp_path: Path) -> None:
    state = begin(tmp_path / os.fsdecode(b"a\xffb"))
    with pytest.raises(ConfigError, match="whose name is not UTF-8"):
        check_tracking(TrackingConfig(uri=None, timeout_s=5.0), state, "s")


def test_the_pages_show_it(tmp_path: Path) -> None:
    state = begin(tmp_path / ALL_AT_ONCE)
    run_id = logged(state)  # makes the database, too
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "search.ui", "--state", str(state), "--port", str(port)]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    server = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        query = f"get-artifact?path=model.onnx&run_uuid={run_id}"
        assert fetched(f"http://127.0.0.1:{port}/{query}", server) == b"a model"
        listed = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run_id}"
        assert json.loads(fetched(listed, server))["run"]["info"]["run_id"] == run_id
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert [path.name for path in tmp_path.iterdir()] == [ALL_AT_ONCE]
    assert {path.name for path in state.iterdir()} == {"artifacts", "mlflow.db"}


def fetched(url: str, server: subprocess.Popen[bytes]) -> bytes:
    """Returns what a server answers that may still be starting."""
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} was not answered")
