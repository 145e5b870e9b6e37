"""What the package imports is what it asks to be installed, or what that asks for itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def imported() -> Iterator[tuple[Path, str]]:
    """Top-level packages of others that the code imports."""
    for folder in ("search", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                tops = {name.partition(".")[0] for name in names}
                for name in sorted(tops - sys.stdlib_module_names - {"search", "models"}):
                    yield path, name


def wanted(distribution: str) -> set[str]:
    """Distributions that one asks for, but those of its extras ``dev`` and ``bench``."""
    asked = requires(distribution) or []
    others = ("extra == 'dev'", 'extra == "dev"', "extra == 'bench'", 'extra == "bench"')
    return {
        _normal(found[0])
        for line in asked
        if not line.endswith(others) and (found := NAME.match(line)) is not None
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_whatever_is_imported_is_asked_for() -> None:
    own = wanted("cnn-search")
    known = own.union(*(wanted(name) for name in own))
    providers = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in imported()
        if known.isdisjoint(map(_normal, providers.get(name, [])))
    }
    assert missing == set()
    assert "torch" in own
    assert "hypothesis" not in own
