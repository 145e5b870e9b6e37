"""What end-to-end tests share: one search that all of them look at, and how every search begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.recipes.preparing import prepare
from search.recipes.setup import make_bench
from search.records.steps.training import Teach
from tests import commands
from tests.e2e.searching import SMOKE, TRIALS
from tests.shared import once
from tests.watch import Watched, watched


@pytest.fixture(scope="session")
def search_watched(common: Path) -> Watched:
    """A whole search in a home of its own, and what it did there."""
    folder = common / "searched"

    def make() -> Watched:
        (folder / "work").mkdir()
        words = commands.line("search.run", *SMOKE, f"study.n_trials={TRIALS}")
        return watched(words, folder / "work", folder / "home")

    return once(folder, make)


@pytest.fixture(scope="session")
def finished(search_watched: Watched) -> tuple[Path, str]:
    """A working directory with a finished search, and what was printed."""
    return search_watched.folder, commands.expect_success(search_watched.result)


@pytest.fixture(scope="session")
def begun(common: Path) -> Path:
    """A working directory that remembers the steps of ``SMOKE`` up to the teacher."""
    folder = common / "begun"

    def begin(raw: Any, _: str) -> int:
        config = parse(raw, SearchConfig)
        store = Store(cli.STATE / "store")
        engine = InlineEngine(store, lambda event: None)
        bench, _space = make_bench(config, store, engine)
        recipe = prepare(bench)
        step = next(recipe)
        while not isinstance(step, Teach):
            step = recipe.send(engine.run(step).result)
        engine.run(step)
        return 0

    def make() -> Path:
        (folder / "work").mkdir()
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder / "work")
            patched.setattr(sys, "argv", ["search.run"])
            assert cli.main(begin, SMOKE) == 0
        return folder / "work"

    return once(folder, make)
