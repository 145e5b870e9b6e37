"""Reads what the comments of ``conf/`` say of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from search.process import home

CONF = home.own_folder("conf")
COMMENT_COLUMN = 44
KEY_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w.]*):(?: |$)")


def annotate(text: str, config_name: str, others: Mapping[str, str]) -> str:
    """Puts remarks behind the keys of a configuration printed from one file.

    Args:
        text: The configuration, as YAML.
        config_name: Of the file in ``conf/``, whose comments the remarks are.
        others: Remarks about keys that ``conf/`` does not have.
    """
    known = comments()
    chosen: dict[str, str] = {}
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        match = KEY_LINE.match(line)
        if match is None:
            lines.append(line)
            continue
        path = [*path[: len(match["indent"]) // 2], match["key"]]
        if len(path) == 2 and path[1] == "name":
            chosen[path[0]] = line.split(":", 1)[1].strip()
        key = ".".join(path)
        group = path[0]
        # An option may take keys over from another one of its group.
        rest = sorted(o for g, o in known if g == group and o != chosen.get(group))
        options = [chosen[group], *rest] if group in chosen else rest
        remark = next(
            (known[group, o][key] for o in options if key in known.get((group, o), {})), ""
        )
        remark = remark or known["", config_name].get(key, "") or others.get(key, "")
        lines.append(f"{line:<{COMMENT_COLUMN}}  # {remark}" if remark else line)
    return "".join(f"{line}\n" for line in lines)


def comments() -> dict[tuple[str, str], dict[str, str]]:
    """Reads ``conf/``: group and option to the comment behind every dotted key.

    The files that command lines begin with have the group ``""``.
    """
    found = {("", path.stem): dict(_comments_in(path, "")) for path in CONF.glob("*.yaml")}
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name != "experiment":
            prefix = f"{path.parent.name}."
            found[path.parent.name, path.stem] = dict(_comments_in(path, prefix))
    return found


def _comments_in(path: Path, prefix: str) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, str]]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            line = lines[key.start_mark.line]
            _, mark, remark = line.partition("  # ")
            if mark:
                yield f"{prefix}{key.value}", remark.strip()
            yield from walk(value, f"{prefix}{key.value}.")

    yield from walk(yaml.compose(text), prefix)
