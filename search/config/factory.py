"""Finds functions that a configuration names."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from search.errors import ConfigError, SearchError, one_line, printable, raised_at
from search.process.home import NAME
from search.process.logs import logging_kept

log = logging.getLogger(__name__)


def load_factory(reference: str, key: str) -> Callable[..., Any]:
    """Imports the function that ``package.module:function`` names.

    Args:
        reference: Where the function is.
        key: Configuration key that holds the reference, for messages.

    Raises:
        ConfigError: The reference has another form, or names nothing that can be called.
    """
    origin = f"{key}={reference!r}"
    module_name, colon, name = reference.partition(":")
    parts = [*module_name.split("."), name]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"{origin}: is not of the form package.module:function; "
            f"write for example {key}=my_package.my_module:build"
        )
    if parts[-2] == "py":
        raise ConfigError(
            f"{origin}: a module is named without .py; give {key}={module_name[:-3]}:{name}"
        )
    module = _import(module_name, origin)
    if not hasattr(module, name):
        if module_name.partition(".")[0] == NAME:
            raise _taken(origin, f"{module_name}:{name}")
        raise ConfigError(f"{origin}: module {module_name} has no {name!r}; define it there")
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(
            f"{origin}: {name} is of type {type(function).__name__} and cannot be called; "
            "name a function"
        )
    return function  # type: ignore[no-any-return]  # callable() narrows Any to nothing better


def call_factory(reference: str, section: str, arguments: Mapping[str, Any], **own: Any) -> Any:
    """Calls the function that a section of the configuration names.

    Args:
        reference: Where the function is: ``factory`` of the section.
        section: Name of the section, for messages.
        arguments: ``arguments`` of the section.
        own: Further arguments, which the configuration does not hold.

    Raises:
        ConfigError: It cannot be imported, or raises.
    """
    origin = f"{section}.factory={reference!r}"
    function = load_factory(reference, f"{section}.factory")
    try:
        with contained(origin):
            return function(**own, **arguments)
    except SearchError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}: called with {section}.arguments={dict(arguments)} it raised "
            f"{one_line(error)}{raised_at(error)}; correct the function or {section}.arguments"
        ) from error


def _taken(origin: str, missing: str) -> ConfigError:
    return ConfigError(
        f"{origin}: {NAME} is this program's own package, in which there is no {missing}; give "
        f"your own {NAME} another name"
    )


def source_sha256(function: Callable[..., Any]) -> str:
    """Returns the hexadecimal SHA-256 of the code that ``function`` builds from.

    That is the file that defines it and, of the modules loaded with it, those of the same package
    or of the same folder; installed packages count by their own name alone.

    Raises:
        ConfigError: The function stands in no file.
    """
    while isinstance(function, functools.partial):
        function = function.func
    # A decorator's own file says nothing about what the function builds.
    function = inspect.unwrap(function)
    located = function if inspect.isroutine(function) or inspect.isclass(function) else None
    try:
        path = inspect.getsourcefile(located if located is not None else type(function))
    except TypeError:
        module = sys.modules.get(_module_of(function))
        path = getattr(module, "__file__", None)
    if path is None or not Path(path).is_file():
        raise ConfigError(
            f"{getattr(function, '__qualname__', function)!s} has no source file, so changes of it "
            "would go unnoticed; name a function that is defined in a file"
        )
    sources = {Path(path), *_neighbours(_module_of(function))}
    digests = [hashlib.sha256(source.read_bytes()).hexdigest() for source in sorted(sources)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _module_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__module__", None) or type(function).__module__


def _neighbours(module_name: str) -> Iterator[Path]:
    """Yields the files of loaded modules that were written together with a module."""
    family = module_name.partition(".")[0]
    home = _home(family)
    shared = home is None or {"site-packages", "dist-packages"} & set(home.parts)
    for name, module in tuple(sys.modules.items()):
        path = getattr(module, "__file__", None)
        top = name.partition(".")[0]
        # The search's own code may change without changing what a user's function builds.
        if path is None or not path.endswith(".py") or top == NAME:
            continue
        if top == family or (not shared and _home(top) == home):
            yield Path(path)


def _home(package: str) -> Path | None:
    """Returns the folder that a package or a module without one was found in."""
    module = sys.modules.get(package)
    folders = list(getattr(module, "__path__", ()))
    path = folders[0] if folders else getattr(module, "__file__", None)
    return None if path is None else Path(path).parent


def _import(module_name: str, origin: str) -> Any:
    try:
        with contained(origin):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only a missing part of the reference itself is a wrong reference; otherwise the module
        # is there, and something that it needs is missing.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            if module_name.partition(".")[0] == NAME:
                raise _taken(origin, error.name) from None
            raise ConfigError(
                f"{origin}: found no module {error.name!r}; correct the name, put the file into "
                "the working directory, or install its package"
            ) from None
        raise ConfigError(
            f"{origin}: importing {module_name} raised {one_line(error)}; install what it needs"
        ) from error
    except (Exception, SystemExit) as error:  # a script that was not meant to be imported
        raise ConfigError(
            f"{origin}: importing {module_name} raised {one_line(error)}; correct the module"
        ) from error


@contextmanager
def contained(origin: str) -> Iterator[None]:
    """Has the user's code leave the process as it was, where that would change the search.

    Its output goes to the debug log. Afterwards restored are logging; the working directory, which
    relative paths such as those of the search's state start from; and of torch whether gradients
    are recorded, the type of new tensors and the number of threads, which training relies on.

    Args:
        origin: Key and value that named the code.
    """
    with prints_to_log(origin), logging_kept(), chdir("."), _torch_kept():
        yield


@contextmanager
def _torch_kept() -> Iterator[None]:
    """Restores torch's settings; loads no torch, which the code within may be the first to do."""
    torch: Any = sys.modules.get("torch")
    grad, kind, threads = True, None, None  # as torch begins
    if torch is not None:
        grad, kind = torch.is_grad_enabled(), torch.get_default_dtype()
        threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(kind or torch.float32)
            if threads is not None and torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextmanager
def prints_to_log(origin: str) -> Iterator[None]:
    """Has the debug log say what the user's code prints, warns of, or draws progress bars with.

    Args:
        origin: Key and value that named the code.
    """
    kept = _Kept(sys.stdout)
    try:
        with redirect_stdout(kept), redirect_stderr(kept):
            yield
    finally:
        for line in kept.close_to_writers():
            log.debug("%s: %s", origin, line)


class _Kept(io.TextIOWrapper):
    """Keeps what is written, instead of showing it.

    Args:
        shown: What it stands for.
    """

    def __init__(self, shown: TextIO) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, "utf-8", "replace", write_through=True)
        # Our own live display asks for it, and goes on.
        self.rich_proxied_file = getattr(shown, "rich_proxied_file", shown)
        self._is_open = True

    def write(self, text: str) -> int:
        """Keeps ``text``; after the end nothing, though a logger may hold this stream for good."""
        return super().write(text) if self._is_open else len(text)

    def fileno(self) -> int:
        """Returns where processes that the user's code starts may write."""
        return int(self.rich_proxied_file.fileno())

    def close_to_writers(self) -> list[str]:
        """Returns the lines written until now; of a progress bar what it showed last."""
        self._is_open = False
        text = self._bytes.getvalue().decode("utf-8", "replace").replace("\r\n", "\n")
        lines = (line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n"))
        return [printable(line) for line in lines if line]
