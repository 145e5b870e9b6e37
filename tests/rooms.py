"""Counts the rooms of ``search/`` and the import arrows between them; ``python -m tests.rooms``.

A room is a folder or a file directly in ``search/``, and ``models/``. An arrow leads from a room to
another one of which it imports something, also where only types need it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "search"
LONGEST = 5  # files that are named


def modules() -> dict[str, Path]:
    """Returns the files of ``search/`` and ``models/`` by the name of their module."""
    files = [path for folder in (PACKAGE, "models") for path in (ROOT / folder).rglob("*.py")]
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yields the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module


def room_of(module: str) -> str:
    """Returns the room that a module is in."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == PACKAGE and rest else top


def arrows() -> dict[tuple[str, str], list[str]]:
    """Returns for each pair of rooms, the importing one first, the imports that join them."""
    known, found = modules(), defaultdict(list)
    for module, path in known.items():
        for imported in imports(path, known):
            pair = room_of(module), room_of(imported)
            if pair[0] != pair[1] and pair[1] != PACKAGE:  # which holds the version alone
                found[pair].append(f"{module} -> {imported}")
    return dict(found)


def main() -> None:
    """Prints rooms, arrows, circles and the longest files."""
    known, found = modules(), arrows()
    rooms = sorted({room_of(module) for module in known} - {PACKAGE})
    print(f"{len(rooms)} rooms, {len(found)} arrows")
    for room in rooms:
        print(f"  {room:<22} -> {', '.join(sorted(to for start, to in found if start == room))}")
    lines = [(path.read_bytes().count(b"\n"), name) for name, path in known.items()]
    for count, name in sorted(lines, reverse=True)[:LONGEST]:
        print(f"{count:5} lines: {name}")


if __name__ == "__main__":
    main()
