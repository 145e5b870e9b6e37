"""What the command lines share: composing, explaining and failing."""

from __future__ import annotations

import difflib
import io
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

from search import __version__
from search.cli import plugins
from search.cli.remarks import annotate, comments
from search.errors import (
    ConfigError,
    DeviceLost,
    NotMet,
    SearchError,
    StorageLost,
    hide_passwords,
    one_line,
    printable,
)
from search.process import home, terminal

CONF = home.own_folder("conf")
STATE = Path("mlruns")
FAILURE, USAGE_ERROR, NOT_MET = 1, 2, 3
INTERRUPTED = 130
# What Hydra itself is told here could have it call, or unpickle, anything.
HYDRAS_OWN = re.compile(r"[+~]*hydra[./@=]|--e")
KEY_OVERRIDE = re.compile(r"(?!hydra\.)\w+(\.\w+)+=")
OPTION_NOT_FOUND = re.compile(r"Could not find '([^']+)/([^'/]+)'")
KEY_NOT_FOUND = re.compile(r"Could not (?:override|load) '([^']+)'")
REFERENCE_NOT_FOUND = re.compile(r"Interpolation key '([^']+)' not found")
COMMAND = re.compile(r"python -m search\.(\w+)")
# How the dynamic linker says it.
NO_MEMORY = re.compile("failed to map segment|cannot allocate memory", re.IGNORECASE)
MORE = "free some, or raise a limit such as ulimit -v"
# With less PyTorch aborts the process while it is imported, which nothing can catch.
LEAST_ADDRESS_BYTES = 2_000_000_000


def main(
    job: Callable[[Any, str], int],
    arguments: Sequence[str] | None,
    config_name: str = "config",
    check: Callable[[Any], object] | None = None,
) -> int:
    """Runs one command line from its overrides to its exit status.

    Args:
        job: Takes the composed configuration as nested containers and as YAML.
        arguments: Hydra's overrides and flags; None for those of the process.
        config_name: File of ``conf/``, without its ending, that the overrides are applied to.
        check: Raises what is wrong with a composed configuration, which ``--cfg`` only shows.

    Returns:
        What ``job`` returned, or as ``reported`` says.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in given:
        print(version_line())
        return 0
    return reported(lambda: _compose(job, given, config_name, check))


def reported(work: Callable[[], int]) -> int:
    """Does a command's work, and reports what ended it in one line on standard error.

    Returns:
        What ``work`` returned; 2 for a configuration or an input that cannot work, 3 when what the
        user demands is not met, 1 when the work broke off, 130 when it was interrupted. What is
        refused leaves no folder behind that was not there before.
    """
    terminal.write_anything()
    _stop_like_ctrl_c()
    # Where matplotlib keeps its list of fonts, by default in the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(STATE / "matplotlib"))
    try:
        home.check_working_directory()
    except ConfigError as error:
        return _complain(error, USAGE_ERROR)
    home.find_modules_first_in()
    is_first = not os.path.lexists(STATE)
    status = _reported(work)
    if is_first and status in (USAGE_ERROR, NOT_MET):
        _remove_empty(STATE)
    return status


def _reported(work: Callable[[], int]) -> int:
    try:
        return work()
    except ConfigError as error:
        return _complain(error, USAGE_ERROR)
    except NotMet as error:
        return _complain(error, NOT_MET)
    except (DeviceLost, StorageLost) as error:
        return _complain(f"{error}; the same command goes on from here", FAILURE)
    except SearchError as error:
        return _complain(error, FAILURE)
    except OSError as error:
        return _complain(_explain_os_error(error), USAGE_ERROR)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not NO_MEMORY.search(str(error)):
            raise
        return _complain(f"there is not enough memory ({one_line(error)}); {MORE}", USAGE_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from here", INTERRUPTED)


def _remove_empty(folder: Path) -> None:
    """Removes the folders that were made for what was then refused, and no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it holds something, perhaps of another command
            Path(path).rmdir()


def version_line() -> str:
    """Returns what ``--version`` prints."""
    return f"{home.SCRIPT} {__version__}"


def _stop_like_ctrl_c() -> None:
    """Has a machine that shuts down, or a container that is stopped, end a search as users do."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_free and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _complain(error: object, status: int) -> int:
    text = hide_passwords(" ".join(str(error).split()))
    # Names of files and words of a device may hold what a terminal obeys.
    print(f"error: {printable(text, len(text))}", file=sys.stderr)
    return status


def _explain_os_error(error: OSError) -> str:
    """Stages report what they cannot read: what is left is what cannot be kept."""
    named = f"{error.filename}: " if error.filename else ""
    state = STATE
    with suppress(OSError):  # the working directory may be gone
        state = STATE.resolve()
    return (
        f"{named}{error.strerror or error}; the search keeps its state in {state} and "
        f"what it needs for a moment in {tempfile.gettempdir()}, which must be folders it can "
        "write to with space left: mend that, and the same command goes on from here"
    )


def _compose(
    job: Callable[[Any, str], int],
    arguments: list[str],
    config_name: str,
    check: Callable[[Any], object] | None,
) -> int:
    """Lets Hydra compose the configuration and hands it to ``job``."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    _refuse_hydras_own(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra reports errors itself, in many lines
    shown = {"--help", "-h", "--cfg", "-c"} & set(arguments)
    printed, said = io.StringIO(), io.StringIO()
    try:
        # Hydra adds lines of its own to errors raised inside of it: the job runs afterwards.
        with redirect_stdout(printed), redirect_stderr(said):
            composed = _run_hydra(arguments, config_name)
            if check is not None and shown & {"--cfg", "-c"}:  # shows whatever keys it is given
                overrides = [one for one in arguments if one[0] != "-" and set(one) & set("=~")]
                for config in _run_hydra(overrides, config_name):
                    if not OmegaConf.missing_keys(config):
                        check(_plain(config))
        checked = [(_plain(config), OmegaConf.to_yaml(config, resolve=True)) for config in composed]
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(_explain_flag(said.getvalue())) from None
        checked = []
    except Exception as error:  # an override that Hydra misunderstands raises whatever it hits
        if isinstance(error, SearchError | OSError) and not isinstance(error, HydraException):
            raise
        raise ConfigError(explain(error, arguments, config_name)) from error
    print(said.getvalue(), end="", file=sys.stderr)
    text = hide_passwords(printed.getvalue())
    text = COMMAND.sub(lambda match: home.command(match[1]), text)
    print(annotate(text, config_name, plugins.remarks()) if shown else text, end="")
    if checked:
        _check_address_space()
    return max((job(raw, settings) for raw, settings in checked), default=0)


def _run_hydra(arguments: Sequence[str], config_name: str) -> list[Any]:
    """Returns what Hydra composes, once for each job; nothing where a flag has it only print."""
    import hydra

    composed: list[Any] = []

    @hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")
    def keep(config: Any) -> None:
        composed.append(config)

    plugins.offer()
    passed = [*plugins.dimension_defaults()] if "space" in _sections(config_name) else []
    passed += [passed for given in arguments for passed in _let_pass(given)]
    with tempfile.TemporaryDirectory() as aside:
        # For several jobs Hydra writes what was given into a file, passwords too.
        if {"-m", "--multirun"} & set(arguments):
            passed.append(f"hydra.sweep.dir={aside}")
        # Overrides last: argparse takes none that come after a flag that came after others.
        passed.sort(key=lambda one: one[0] == "~" or ("=" in one and one[0] != "-"))
        sys.argv = [sys.argv[0], *passed]
        keep()
    return composed


def _check_address_space() -> None:
    """Refuses to begin where a process may have too little memory to load its libraries.

    Raises:
        ConfigError: If so.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < LEAST_ADDRESS_BYTES:
        raise ConfigError(
            f"a process may have {most / 1e9:.1f} GB of address space here, and needs "
            f"{LEAST_ADDRESS_BYTES / 1e9:g} GB at least; {MORE}"
        )


def _refuse_hydras_own(arguments: Sequence[str]) -> None:
    """Refuses what Hydra would obey.

    Raises:
        ConfigError: About flags of Hydra's own.
    """
    for argument in arguments:
        if HYDRAS_OWN.match(argument):
            raise ConfigError(
                f"{argument}: there is no such key or flag here; what Hydra does is fixed"
            )


def _let_pass(argument: str) -> list[str]:
    """Lets an override of a key pass Hydra whether or not there is such a key.

    Hydra stops at the first key it does not know; the types of ``search.config`` report them
    all, together with every wrong value. It also spares the user the ``+`` of new keys, as in
    ``model.arguments.depth=3``, and the quotes around ``~/some/path``. And a range becomes a list
    of choices, as in ``space.threads=[1,2]``: Hydra cannot put a list where a section is.
    """
    if not KEY_OVERRIDE.match(argument):
        return [argument]
    key, _, value = argument.partition("=")
    if value.startswith("~") and value.isprintable() and not set(value) & set("\"'\\"):
        argument = f'{key}="{value}"'  # Hydra takes no bare ~, and the shell leaves it as it is
    replaces_range = value.startswith("[") and key in plugins.ranges()
    return [f"~{key}", f"++{argument}"] if replaces_range else [f"++{argument}"]


def _plain(config: Any) -> Any:
    """Returns a composed configuration as nested containers.

    Raises:
        ConfigError: When mandatory keys are not given; names all of them.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        known = {key: remark for option in comments().values() for key, remark in option.items()}
        meanings = [(key, known.get(key, "it has no default")) for key in missing]
        raise ConfigError(
            "; ".join(f"{key} is not given; add {key}=... ({text})" for key, text in meanings)
        )
    return OmegaConf.to_container(config, resolve=True)


def _explain_flag(said: str) -> str:
    """Turns the usage and error of ``argparse`` into one line."""
    message = said.strip().splitlines()[-1].partition("error: ")[2]
    return f"{message}; --help shows what there is"


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Returns one line about an error of Hydra or OmegaConf: key, what was given, the remedy."""
    text = str(error)
    for group, given in [*OPTION_NOT_FOUND.findall(text), *_options(arguments)]:
        known = sorted(
            {path.stem for path in (CONF / group).glob("*.yaml")} | plugins.options(group)
        )
        if given not in known:
            choices = f"{', '.join(known)}{_near(given, known)}"
            return f"{group}={given}: no such choice; give one of {choices}"
    key = KEY_NOT_FOUND.search(text)
    if key:
        return _explain_key(key[1], arguments, config_name)
    reference = REFERENCE_NOT_FOUND.search(text)
    if reference:
        owner = getattr(error, "full_key", None) or "the configuration"
        return f"{owner} refers to {reference[1]}, which does not exist; correct one of them"
    unread = getattr(error, "override", None)
    given = str(unread).removeprefix("++") if unread else _mentioned(text, arguments)
    name, equals, values = given.partition("=")
    if "Ambiguous value" in text:
        return f"{given}: is several values; for a list give {name}=[{values}]"
    if given and not (equals and name.strip("+~")):
        return f"{given}: is not of the form key=value, such as study.n_trials=20"
    if unread:
        return (
            f"{given}: cannot be read; close brackets and quotes, and put a value with special "
            f"characters in two pairs of quotes: {name}='\"...\"'"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{given or ' '.join(arguments)}: {lines[0] if lines else type(error).__name__}"


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the groups that ``arguments`` choose an option of, with what they choose."""
    pairs = (argument.partition("=") for argument in arguments)
    return [(group, given) for group, _, given in pairs if (CONF / group).is_dir() and group]


def _mentioned(text: str, arguments: Sequence[str]) -> str:
    """Returns the override that an error is about, or nothing."""
    overrides = [a for a in arguments if not a.startswith("-")]
    return next((a for a in overrides if a in text or a.startswith("=")), "")


def _explain_key(key: str, arguments: Sequence[str], config_name: str) -> str:
    given = next((a for a in arguments if a.partition("=")[0].lstrip("+~") == key), key)
    known = _sections(config_name)
    allowed = f"; there are {', '.join(known)}" if "." not in key else ""
    dotted = {name for option in comments().values() for name in option}
    inside = sorted(name for name in dotted if name.endswith(f".{key}"))
    near = f" (did you mean {' or '.join(inside)}?)" if inside else _near(key, known)
    return f"{given}: there is no such key{near}{allowed}"


def _sections(config_name: str) -> list[str]:
    """Returns the groups and sections that a file of ``conf/`` is composed of."""
    raw = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))
    groups = {name for entry in raw["defaults"] if isinstance(entry, dict) for name in entry}
    own = {name for name in raw if name not in ("defaults", "hydra")}
    return sorted({name for name in groups if " " not in name} | own)


def _near(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
