"""Where the program's own files lie, how its commands are called, where users' modules are found.

``conf/`` and ``models/`` are top-level folders of the repository. A wheel has them inside of this
package, as ``_conf`` and ``_models``, because modules of these names belong to users: so the
project's own networks are imported as ``search._models`` wherever they lie.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from search.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name
SCRIPT = "cnn-search"


def own_folder(name: str) -> Path:
    """Returns one of the project's top-level folders, ``conf`` or ``models``."""
    inside = PACKAGE / f"_{name}"
    return inside if inside.is_dir() else PACKAGE.parent / name


def own_models() -> ModuleType:
    """Imports the project's own networks, whatever users call ``models``."""
    name = f"{NAME}._models"
    if name not in sys.modules:
        folder = own_folder("models")
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def command(name: str) -> str:
    """Returns one of the commands, such as ``pick``, in the way that this one was called."""
    if Path(sys.argv[0]).name == SCRIPT:
        return f"{SCRIPT} {name}"
    return f"python -m {NAME}.{name}"


def check_working_directory() -> None:
    """Refuses to work in a folder that is there no more.

    Raises:
        ConfigError: When it is not.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory cannot be used ({error.strerror}); cd to one that exists"
        ) from error


class _HereFirst:
    """Finds modules in one folder before any other place, but never this package there.

    ``python -m`` does so with all names, the working directory first; a script and a worker must
    not, or they would import the user's ``search`` in place of this one. A mere folder without
    ``__init__.py``, which may hold anything, comes last, as it does with Python.

    Args:
        folder: Where users have their modules; "" for wherever this process works.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns where a top-level module is, if it is in the folder."""
        if path is not None or name == NAME:
            return None
        spec = PathFinder.find_spec(name, [self._folder], target)
        if spec is None or spec.loader is not None:
            return spec
        others = (finder for finder in sys.meta_path if finder is not self)
        return None if any(one.find_spec(name, None, target) for one in others) else spec


def find_modules_first_in(folder: str = "") -> None:
    """Has this process look for modules of users in a folder first; "" is where it works."""
    if not any(isinstance(finder, _HereFirst) for finder in sys.meta_path):
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _HereFirst(folder))
