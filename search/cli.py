"""What the command lines share: composing, explaining and failing; knows nothing of searching."""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from search.errors import ConfigError, SearchError

CONF = Path(__file__).resolve().parent.parent / "conf"
STATE = Path("mlruns")
USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130
COMMENT_COLUMN = 44
KEY_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w.]*):(?: |$)")


def main(job: Callable[[Any, str], int], arguments: Sequence[str] | None) -> int:
    """Runs one command line from its overrides to its exit status.

    Args:
        job: Takes the composed configuration as nested containers and as YAML.
        arguments: Hydra's overrides and flags; None for those of the process.

    Returns:
        What ``job`` returned; 2 for a configuration or an input that cannot work, 1 when the
        work broke off, 130 when it was interrupted. Each but the first with one line on standard
        error.
    """
    try:
        return _compose(job, list(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        return _complain(error, USAGE_ERROR)
    except SearchError as error:
        return _complain(error, FAILURE)
    except OSError as error:
        return _complain(_explain_os_error(error), USAGE_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from here", INTERRUPTED)


def _complain(error: object, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _explain_os_error(error: OSError) -> str:
    """Stages report what they cannot read: what is left is state that cannot be kept."""
    return (
        f"{error.filename or STATE}: {error.strerror or error}; the search keeps its state in "
        f"{STATE.resolve()}, which must be a folder it can write to: mend it, or run elsewhere"
    )


def _compose(job: Callable[[Any, str], int], arguments: list[str]) -> int:
    """Lets Hydra compose the configuration and hands it to ``job``."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra reports errors itself, in many lines
    composed: list[tuple[Any, str]] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def keep(config: DictConfig) -> None:
        raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        composed.append((raw, OmegaConf.to_yaml(config, resolve=True)))

    sys.argv = [sys.argv[0], *arguments]
    shows_config = {"--help", "-h", "--cfg", "-c"} & set(arguments)
    printed = io.StringIO()
    try:
        # Hydra adds lines of its own to errors raised inside of it: the job runs afterwards.
        with redirect_stdout(printed) if shows_config else nullcontext():
            keep()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, arguments)) from error
    finally:
        print(annotate(printed.getvalue()), end="")
    return max((job(raw, settings) for raw, settings in composed), default=0)


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Returns one line about an error of Hydra or OmegaConf: key, what was given, the remedy."""
    text = str(error)
    option = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if option:
        group, given = option.groups()
        known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return (
            f"{group}={given}: no such choice; give one of {', '.join(known)}{_near(given, known)}"
        )
    key = re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Could not load '([^']+)'", text
    )
    if key:
        return _explain_key(key[1], arguments)
    missing = re.search(r"Missing mandatory value: ([\w.]+)", text)
    if missing:
        return f"{missing[1]} is needed and not given; add {missing[1]}=..."
    given = next((a for a in arguments if not a.startswith("-") and a in text), "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{given or ' '.join(arguments)}: {lines[0] if lines else type(error).__name__}"


def _explain_key(key: str, arguments: Sequence[str]) -> str:
    given = next((a for a in arguments if a.lstrip("+~").startswith(key)), key)
    known = sorted({name for option in comments().values() for name in option})
    section = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    allowed = f"; {key.rpartition('.')[0]} has {', '.join(section)}" if section else ""
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    if not section and "." not in key:
        allowed = f"; there are {', '.join([*groups, 'study'])}"
    return f"{given}: there is no such key{_near(key, [*known, *groups])}{allowed}"


def _near(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def annotate(text: str) -> str:
    """Puts the comments of ``conf/`` behind the keys of a printed configuration."""
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
        options = [chosen[group]] if group in chosen else sorted(o for g, o in known if g == group)
        remark = next(
            (known[group, o][key] for o in options if key in known.get((group, o), {})), ""
        )
        remark = remark or known["", "config"].get(key, "")
        lines.append(f"{line:<{COMMENT_COLUMN}}  # {remark}" if remark else line)
    return "".join(f"{line}\n" for line in lines)


def comments() -> dict[tuple[str, str], dict[str, str]]:
    """Reads ``conf/``: group and option to the comment behind every dotted key.

    The root file has the group ``""``.
    """
    found = {("", "config"): dict(_comments_in(CONF / "config.yaml", ""))}
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
