"""The walls between rooms close by themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rooms import PACKAGE, ROOT, arrows, modules, room_of

MOST_LINES = 400
STRAYS = {
    "a module in a room": ("front/stray.py", "import mlflow\n"),
    "an import upwards": ("records/stray.py", "import search.report.table\n"),
    "a room that nobody knows": ("stray/__init__.py", ""),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_module_is_found(stray: str, tmp_path: Path) -> None:
    for folder in (PACKAGE, "models"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name, text = STRAYS[stray]
    path = tmp_path / PACKAGE / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(linter, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "stray" in done.stdout


def test_no_file_is_long() -> None:
    files = [path for folder in (PACKAGE, "models") for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in files if path.suffix in (".py", ".js", ".css", ".html")]
    assert len(texts) > len(modules())
    lines = {path.name: path.read_bytes().count(b"\n") for path in texts}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_rooms_are_few() -> None:
    assert len({room_of(module) for module in modules()} - {PACKAGE}) <= 33
    assert len(arrows()) <= 190


def test_a_wheel_has_every_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    there = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in modules().values()
    }
    assert set(declared) == there - {"models"} | {"search._conf", "search._models"}
