"""A whole search whose study and runs are in one PostgreSQL database, over the command line."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient

from search.storage.database import with_driver
from tests.commands import expect_success, run
from tests.e2e.searching import SMOKE, STUDY, begin_beside
from tests.postgres_server import PASSWORD, USER, PostgresServer

PLAIN = ("policy.deployments=0", "finalists.count=0", "study.n_trials=3")
WORKERS = ("engine=local", "engine.workers=1")
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), PASSWORD.partition(":")[0])


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


def hides(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


def test_a_search_in_a_database_is_found_and_tells_nobody_its_password(
    postgres: PostgresServer, url: str, begun: Path, tmp_path: Path
) -> None:
    begin_beside(begun, tmp_path)
    kept = ("storage=postgres", f"storage.url={url}")
    searched = (*SMOKE, *kept, f"tracking.uri={url}", *PLAIN, *WORKERS)
    printed = expect_success(run(tmp_path, "search.run", *searched))
    where = f"postgresql://{USER}:***@127.0.0.1:{postgres.port}"
    assert f"python -m search.pick study={STUDY} storage=postgres 'storage.url={where}" in printed
    listed = expect_success(run(tmp_path, "search.pick", f"study={STUDY}", *kept))
    assert f"{STUDY}: 3 trials on digits" in listed
    gone = run(tmp_path, "search.explain", "study=other", *kept)
    assert gone.stderr == f"error: study=other: there is no such study; there are {STUDY}\n"

    assert postgres.ask("SELECT count(*) FROM cnn_search.trials", url) == [(3,)]
    client = MlflowClient(with_driver(url))
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert len(runs) == 3

    shown = expect_success(run(tmp_path, "search.run", *searched, "--cfg", "job"))
    assert f"url: {where}" in shown
    assert hides(printed + listed + gone.stderr + shown)
    assert not list(tmp_path.glob("mlruns/studies/*"))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in written)
    (page,) = (path.read_text() for path in written if path.name == "front.html")
    assert f"search.pick study={STUDY} storage=postgres 'storage.url={where}" in page
    assert [p for p in written if any(s.encode() in p.read_bytes() for s in SECRETS)] == []
    assert hides(postgres.dump(url))
