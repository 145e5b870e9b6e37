"""A wheel in an environment of its own, beside folders of the user's that have our names."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import search
from tests import foreign
from tests.commands import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "search", "conf", "models")
SEARCH = (
    "experiment=smoke", "data=digits", "study.name=mine", "model=custom",
    f"model.factory={foreign.FACTORY}", "engine=local", "engine.workers=1", "study.n_trials=1",
    "train.device=cpu", "train.precision=float32", "train.teacher_epochs=3", "train.epochs=0.2",
    "device.budget_s=0.2", "device.timeout_s=60", "space.threads=1", "policy.deployments=0",
    "device.canary_every=null", "finalists.count=0",
)  # fmt: skip


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program without the repository where modules are looked for."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=plain,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def expect(folder: Path, *words: str | Path) -> str:
    done = run(folder, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel made from what is in that."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, sources)
    script = f"from setuptools.build_meta import build_sdist as b; b({str(out)!r})"
    done = run(sources, sys.executable, "-c", script)
    assert done.returncode == 0, done
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(sources / "unpacked", filter="data")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    done = run(out, *pip, "--wheel-dir", out, next((sources / "unpacked").iterdir()))
    assert done.returncode == 0, done
    return out


@pytest.fixture(scope="module")
def scripts(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of an environment with the wheel, and everybody else's packages."""
    home = tmp_path_factory.mktemp("environment")
    made = run(home, sys.executable, "-m", "venv", "--without-pip", home)
    assert made.returncode == 0, made
    python = home / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    done = run(home, *pip, "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done
    places = next((home / "lib").glob("python*/site-packages"))
    (places / "others.pth").write_text("\n".join(site.getsitepackages()))
    return home / "bin"


@pytest.fixture(scope="module")
def folder(scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, with a finished search and what it printed."""
    folder = foreign.fill(tmp_path_factory.mktemp("user"), search=True)
    (folder / "printed").write_text(expect(folder, scripts / "cnn-search", "run", *SEARCH))
    return folder


def test_a_wheel_takes_no_names_of_users(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"search", "cnn_search"}
    packed = {name.removeprefix("search/_conf/") for name in names if "/_conf/" in name}
    assert packed == {str(path.relative_to(ROOT / "conf")) for path in ROOT.glob("conf/**/*.yaml")}
    packages = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("search/**/__init__.py")}
    assert packages <= {name.rpartition("/")[0] for name in names}


def test_a_search_in_workers_beside_folders_of_the_same_names(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    assert "trial 0 complete: " in printed
    state = re.escape(str(folder / "mlruns"))
    assert re.search(rf"Look at it: +cnn-search ui --state {state} ", printed)
    assert "Pick from it: cnn-search pick study=mine\n" in printed
    assert "make " not in printed


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("pick", "study=mine"), "Pick one:    cnn-search pick study=mine trial=NUMBER"),
        (("explain", "study=mine", "trial=0"), "Orig."),
        (("sync", "study=mine"), "mine: 0 trials delivered, 1 was there"),
        (("device", "device.probe=false"), "onnxruntime"),
        (("ui", "--help"), "usage: cnn-search ui "),
        (("run", "--help"), "\n  cnn-search run experiment=smoke "),
    ],
)
def test_the_other_commands(
    command: tuple[str, ...], says: str, folder: Path, scripts: Path
) -> None:
    assert says in expect(folder, scripts / "cnn-search", *command)


def test_the_user_s_network_may_be_called_search_but_is_told(folder: Path, scripts: Path) -> None:
    given = ("data=digits", "model=custom", "model.factory=search.mine:build")
    done = run(folder, scripts / "cnn-search", "run", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert "model.factory='search.mine:build': search is this program's own package" in done.stderr


@pytest.mark.parametrize("name", ["run", "pick", "explain", "device", "sync", "ui"])
def test_modules_and_script_tell_the_version(name: str, scripts: Path, tmp_path: Path) -> None:
    told = f"cnn-search {search.__version__}\n"
    assert expect(tmp_path, scripts / "python", "-m", f"search.{name}", "--version") == told
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_the_wheel_shows_its_keys(scripts: Path, tmp_path: Path) -> None:
    printed = expect(tmp_path, scripts / "python", "-m", "search.run", "--help")
    assert "python -m search.run experiment=smoke" in printed
    assert "model: cnn, custom, ds_cnn, resnet8" in printed
