"""A package of somebody else's adds a technique with its dimension, and a data set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from search.front.importance import importances
from search.space.dimension import dimensions
from search.storage.journal import Journals
from search.study.archive import read_archive
from tests import commands
from tests.e2e.searching import SMOKE, Tracked

PACKAGE = commands.ROOT / "tests" / "plugin"
STUDY = "plugged"
TRIALS = 21  # of fewer no importances are told
SHARES = (0.25, 0.5, 1.0)  # few, because every other one is traced anew
SEARCH = (
    *SMOKE, "data=parity", f"study.name={STUDY}", f"study.n_trials={TRIALS}", "sampler=random",
    "policy.eta=null", "policy.latency_first=false", "policy.deployments=0", "finalists.count=1",
    "device.canary_every=null", f"space.rank_share={list(SHARES)}".replace(" ", ""),
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command = [*pip, "--no-build-isolation", "--target", str(folder), str(PACKAGE)]
    subprocess.run(command, check=True, timeout=commands.TIMEOUT_S)
    return folder


def run(folder: Path, installed: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    places = [str(commands.ROOT), *([] if installed is None else [str(installed)])]
    return subprocess.run(
        commands.line(*words),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=commands.TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def searched(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    commands.expect_success(run(folder, installed, "search.run", *SEARCH))
    return folder


def test_it_keeps_the_contracts(installed: Path, tmp_path: Path) -> None:
    contracts = str(PACKAGE / "contracts.py")
    quiet = ("-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "pytest"))
    command = [sys.executable, "-m", "pytest", *quiet, "-c", str(commands.ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, contracts],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(commands.ROOT), str(installed)])},
        capture_output=True,
        text=True,
        timeout=commands.TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout


def test_the_dimension_is_offered(installed: Path, tmp_path: Path) -> None:
    shown = commands.expect_success(run(tmp_path, installed, "search.run", "--help"))
    assert "rank_share:" in shown
    assert "# rank share: 0.05 to 1" in shown
    wrong = run(tmp_path, installed, "search.run", "space.rank_share=2", "data=none")
    assert wrong.returncode == 2
    assert "digits, fashion_mnist, image_folder, parity" in wrong.stderr


def test_trials_have_the_dimension_and_networks_change(searched: Path, tmp_path: Path) -> None:
    tracked = Tracked(searched, STUDY)
    shares = {number: run.data.params["rank_share"] for number, run in tracked.trials.items()}
    assert set(shares.values()) == {str(share) for share in SHARES}
    assert shares[0] == "1.0"
    assert tracked.parent.data.tags["study"] == STUDY
    page = tracked.read(tracked.parent, "front.html", tmp_path).read_text()
    assert "rank share" in page
    archive = read_archive(Journals(searched / "mlruns" / "studies"), STUDY, "study")
    assert "rank_share" not in {one.name for one in dimensions()}, "it is not installed here"
    found = importances(archive.records, archive.objectives)
    assert all("rank_share" in shares for shares in found.values())
    assert found
    macs = {r.number: r.figures.macs for r in archive.records if r.figures is not None}
    assert len(set(macs.values())) > 5


def test_its_range_becomes_a_list(installed: Path, tmp_path: Path) -> None:
    shares = "space.rank_share=[0.5,1.0]"
    shown = commands.expect_success(run(tmp_path, installed, "search.run", shares, "--cfg", "job"))
    assert re.search(r"rank_share:.*\n  - 0\.5\n  - 1\.0\n", shown)


def test_without_the_package_the_study_is_refused(searched: Path) -> None:
    refused = run(searched, None, "search.run", *SEARCH)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "parity: no such choice" in refused.stderr
    other = [word for word in SEARCH if word != "data=parity"]
    refused = run(searched, None, "search.run", *other)
    assert refused.returncode == 2
    assert "space.rank_share: unknown dimension" in refused.stderr
    other = [word for word in other if not word.startswith("space.rank_share")]
    refused = run(searched, None, "search.run", *other)
    assert refused.returncode == 2
    assert "data.name" in refused.stderr
