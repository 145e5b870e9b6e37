"""A tracking server that is away for a while in the middle of a search, and comes back."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

from tests import commands
from tests.chaos import check
from tests.e2e.searching import INDEPENDENT, SMOKE, begin_beside
from tests.journals import journal, record_of
from tests.mlflow_server import serve

AWAY_S = 10.0


def test_it_gets_everything_and_the_search_does_not_wait(
    begun: Path, empty_database: Path, tmp_path: Path
) -> None:
    begin_beside(begun, tmp_path)
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    with serve(tmp_path / "mlruns", tmp_path / "server.log") as server:
        search = commands.line(
            "search.run",
            *SMOKE,
            *INDEPENDENT,
            "data=digits",
            "study.name=s",
            "study.n_trials=null",
            f"study.timeout_s={AWAY_S + 15}",
            f"tracking.uri={server.address}",
            "tracking.timeout_s=5",
        )
        back = threading.Timer(AWAY_S, server.start)
        printed: list[tuple[float, str]] = []
        with subprocess.Popen(
            search, cwd=tmp_path, env=commands.environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append((time.monotonic(), line))
                if " trial 1 " in line:
                    server.kill()
                    back.start()
                    killed_at = time.monotonic()
        said = "".join(line for _, line in printed)
        assert process.returncode == 0, said
        assert " trial 1 " in said, said
        back.join()
        server.wait()
        # It may have come back too late for the search itself, which then says so.
        given = ("study=s", f"tracking.uri={server.address}")
        synced = commands.expect_success(commands.run(tmp_path, "search.sync", *given))
    assert said.count("; the search goes on, and MLflow gets its trials") == 1
    assert ("MLflow answers again" in said) or ("not in MLflow yet" in said)
    missed = re.search(r"trials? (is|are) not in MLflow yet", said)
    assert ("s: 0 trials delivered" in synced) == (missed is None), said + synced
    trials = [at - killed_at for at, line in printed if " trial " in line]
    assert any(0 < after_s < AWAY_S for after_s in trials), said
    kept = [record_of(trial) for trial in journal(tmp_path, "s")]
    assert check(tmp_path, "s", sum(record["student_of"] is None for record in kept)) == []
