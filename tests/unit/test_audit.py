"""The audit of what is installed says what it could not look up."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def audit() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "audit.py"))


def stand_in(folder: Path, told: object) -> str:
    """Writes a program that says what pip-audit would."""
    path = folder / "pip-audit"
    path.write_text(f"#!{sys.executable}\nprint({json.dumps(told)!r})\n")
    path.chmod(0o755)
    return str(path)


def test_what_differs_from_the_pins_is_named(audit: dict[str, Any]) -> None:
    pins = audit["read_pins"]("# versions\nA_b==1.0\nc==2.0 # why\n")
    assert pins == {"a-b": "1.0", "c": "2.0"}
    assert audit["compare"](pins, {"a-b": "1.0+cpu", "pip": "9"}) == []
    assert audit["compare"](pins, {"c": "2.1", "d": "1"}) == [
        "c 2.1 is installed, and 2.0 is pinned",
        "d 1 is installed, and nothing is pinned",
    ]


def test_every_package_is_pinned_to_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert len(lines) > 100
    assert [line for line in lines if line.count("==") != 1 or " " in line] == []


def test_every_pin_but_torchs_has_its_hashes(audit: dict[str, Any]) -> None:
    pins = audit["read_pins"]((ROOT / "constraints.txt").read_text())
    locked, name = dict[str, str](), ""
    hashes = Counter[str]()
    for line in (ROOT / "requirements.lock").read_text().splitlines()[2:]:
        if "==" in line:
            name, version = line.partition(" ")[0].split("==")
            locked[audit["plain"](name)] = version
        else:
            assert re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line), line
            hashes[audit["plain"](name)] += 1
    assert {**locked, "torch": pins["torch"]} == pins
    assert hashes.keys() == locked.keys()


FAULT = {"name": "six", "version": "1.17.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
SKIPPED = {"name": "six", "skip_reason": "not found"}
SOUND = {**FAULT, "vulns": []}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([FAULT], (["six 1.17.0: CVE-1, mended in 2"], 1, "")),
        ([SOUND], ([], 1, "")),
        ([SKIPPED], ([], 0, "not found")),
    ],
)
def test_what_is_known_is_told(
    audit: dict[str, Any], tmp_path: Path, told: list[Any], found: tuple[list[str], int, str]
) -> None:
    assert audit["look_up"](stand_in(tmp_path, {"dependencies": told})) == found


def test_what_cannot_be_looked_up_is_said(audit: dict[str, Any], tmp_path: Path) -> None:
    assert audit["look_up"](str(tmp_path / "none"))[1:] == (
        0,
        "pip-audit does not run (FileNotFoundError)",
    )
    assert audit["look_up"](stand_in(tmp_path, []))[1] == 0


def test_without_data_it_says_so_and_checks_the_pins(
    audit: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit["main"]([str(tmp_path / "none")])
    said = capsys.readouterr().out
    assert "0 of" in said
    assert "NOT looked up" in said
