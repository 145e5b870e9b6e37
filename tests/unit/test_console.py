"""The console script finds its commands, and refuses what is none."""

from __future__ import annotations

import importlib
import sys

import pytest

import search
from search.cli import script as console
from search.process import home


def test_every_command_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in console.COMMANDS:
        assert [line for line in lines if line.startswith(f"  {name} ")]
        assert callable(importlib.import_module(f"search.{name}").main)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cnn-search {search.__version__}\n"
    assert console.main(["pick", "--version"]) == 0
    assert capsys.readouterr().out == f"cnn-search {search.__version__}\n"


def test_nothing_asked_for_is_help_and_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 2
    assert "explain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("pikc", " (did you mean pick?)"), ("--verbose", ""), ("study=x", "")]
)
def test_another_word_is_refused(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {word}: there is no such command{hint}; give one of run, pick")
    assert said.count("\n") == 1


def test_commands_are_named_as_this_one_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/cnn-search", "run"])
    assert home.command("pick") == "cnn-search pick"
    monkeypatch.setattr(sys, "argv", ["/somewhere/search/run.py"])
    assert home.command("pick") == "python -m search.pick"
