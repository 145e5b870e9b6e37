"""Searches that measure on a device behind ssh, over the real command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect

import asyncssh
import pytest

from tests import commands
from tests.e2e import searching
from tests.ssh_server import Server, list_key

SMOKE = (
    *searching.SMOKE,
    "study.name=away",
    "policy.latency_first=false",
    "policy.eta=null",
    "policy.deployments=0",
    "finalists.count=0",
    "finalists.budget_s=0.3",
)


@dataclass(frozen=True)
class Away:
    """A working directory, and the overrides that measure on a server's device."""

    folder: Path
    server: Server
    overrides: tuple[str, ...]


@pytest.fixture(scope="module")
def away(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    folder, home = tmp_path_factory.mktemp("search"), tmp_path_factory.mktemp("home")
    searching.begin_beside(begun, folder)
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(home / "key")
    with Server(home, host, user) as server:
        list_key(home, server.port, host)
        yield Away(
            folder,
            server,
            (
                "device=ssh",
                "device.host=127.0.0.1",
                f"device.port={server.port}",
                "device.user=somebody",
                f"device.key={home / 'key'}",
                f"device.known_hosts={home / 'known_hosts'}",
                f"device.python={sys.executable}",
            ),
        )


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return commands.run(folder, "search.run", *SMOKE, *overrides)


def outcomes(folder: Path) -> list[str]:
    """What MLflow says became of the trials."""
    with closing(connect(folder / "mlruns" / "mlflow.db")) as database:
        rows = database.execute("select value from tags where key = 'outcome'")
        return [outcome for (outcome,) in rows]


def scores(folder: Path) -> list[Path]:
    """What the store remembers of scoring, wherever that was done."""
    return list((folder / "mlruns" / "store" / "steps").glob("evaluate*/*.json"))


@pytest.fixture(scope="module")
def searched(away: Away) -> Away:
    done = run(away.folder, *away.overrides, "study.n_trials=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"measured on 127.0.0.1:{away.server.port} (" in done.stdout
    return away


def test_a_search_measures_there(searched: Away) -> None:
    assert outcomes(searched.folder) == ["complete"] * 3
    # The agent, the inputs, the images, the original and each trial's model, sent once.
    sent = [Path(name).name.partition(".part")[0] for name in searched.server.uploads]
    assert len(set(sent)) == len(sent) >= 6
    assert sum(name.endswith(".npy") for name in sent) == 2
    # The original and what each trial deploys.
    assert len(scores(searched.folder)) >= 3


def test_a_search_goes_on_there(searched: Away) -> None:
    before = len(searched.server.uploads)
    done = run(searched.folder, *searched.overrides, "study.n_trials=4", "finalists.count=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"trial (\d+) ", done.stdout) == ["3"]
    assert outcomes(searched.folder) == ["complete"] * 4
    # The new trial's model, and those that the closing round has trained on; nothing twice.
    assert len(searched.server.uploads) > before
    sent = [Path(name).name.partition(".part")[0] for name in searched.server.uploads]
    assert len(set(sent)) == len(sent)
    # Finalists are scored there on the test images, and nothing was ever scored here.
    assert sum(name.endswith(".npy") for name in sent) == 3
    assert {step.parent.name for step in scores(searched.folder)} == {"evaluate_on_device"}


def test_a_trial_is_explained_there(searched: Away) -> None:
    before = len(searched.server.uploads)
    done = commands.run(searched.folder, "search.explain", "study=away", "trial=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"profiling on 127.0.0.1:{searched.server.port} ...\n")
    assert "Trial 1 " in done.stdout
    # The model that computes nothing, unless the search has profiled its own front already.
    assert len(searched.server.uploads) <= before + 1
    sent = len(searched.server.uploads)
    again = commands.run(searched.folder, "search.explain", "study=away", "trial=1")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(searched.server.uploads) == sent


def test_a_search_does_not_go_on_elsewhere(searched: Away) -> None:
    refused = run(searched.folder, "study.n_trials=5")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: the device is local, but the study away was begun on "
        f"127.0.0.1:{searched.server.port}; figures do not compare: go on there, or start "
        "another one with study.name=...\n"
    )


def test_a_device_is_registered_once(away: Away) -> None:
    probe = ("search.device", *away.overrides, "device.budget_s=0.3")
    first = commands.run(away.folder, *probe)
    assert (first.returncode, first.stderr) == (0, "")
    name = re.escape(f"127.0.0.1:{away.server.port}")
    assert re.search(rf"Device +{name} *\n", first.stdout)
    assert re.search(
        r"float against itself +[01]\.\d{3}. \[[\d.]+.[\d.]+\] of the time", first.stdout
    )
    again = commands.run(away.folder, *probe)
    assert again.stdout.startswith("remembered; to measure it again, remove ")
    assert first.stdout.partition("Device ")[2] == again.stdout.partition("Device ")[2]


def test_registering_takes_the_device_alone(tmp_path: Path) -> None:
    refused = commands.run(tmp_path, "search.device", "experiment=smoke")
    said = "error: experiment=smoke: there is no such key; there are device\n"
    assert (refused.returncode, refused.stderr) == (2, said)
    shown = commands.run(tmp_path, "search.device", "--help")
    assert shown.stdout.startswith("Shows what is fast on a device")
    assert "  budget_s: 8.0 " in shown.stdout
    assert list(tmp_path.iterdir()) == []
