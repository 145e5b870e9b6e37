"""Functions named in the configuration are found, or the message says what to write."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.config.factory import load_factory, source_sha256
from search.errors import ConfigError

MODULE = """
import functools

NUMBER = 3

def build(size=1):
    return size

class Builder:
    def __call__(self):
        return 2

builder = Builder()
partial = functools.partial(build, size=4)

@functools.lru_cache
def decorated():
    return 5
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "room.py").write_text(MODULE)
    (folder / "needy.py").write_text("import no_such_package_at_all\n")
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "angry.py").write_text("raise RuntimeError('not today\\nor tomorrow')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "house"]:
        del sys.modules[name]


def test_finds_functions_and_other_callables() -> None:
    assert load_factory("house.room:build", "data.factory")(size=7) == 7
    assert load_factory("house.room:builder", "data.factory")() == 2


@pytest.mark.parametrize("reference", ["search.mine:build", "search:build", "search.data.x.y:f"])
def test_the_program_s_own_name_is_explained(reference: str) -> None:
    with pytest.raises(ConfigError, match="search is this program's own package, in which there"):
        load_factory(reference, "model.factory")


@pytest.mark.parametrize(
    "reference", ["house.room", "house.room.build", "house.room:", ":build", "a b:c", "a:b:c", ""]
)
def test_a_reference_of_another_form_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_factory(reference, "model.factory")
    assert str(caught.value) == (
        f"model.factory={reference!r}: is not of the form package.module:function; "
        "write for example model.factory=my_package.my_module:build"
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "no_such_house.room:build",
            "found no module 'no_such_house'; correct the name, put the file into the working "
            "directory, or install its package",
        ),
        (
            "house.attic:build",
            "found no module 'house.attic'; correct the name, put the file into the working "
            "directory, or install its package",
        ),
        (
            "house.needy:build",
            "importing house.needy raised ModuleNotFoundError: No module named "
            "'no_such_package_at_all'; install what it needs",
        ),
        (
            "house.angry:build",
            "importing house.angry raised RuntimeError: not today; correct the module",
        ),
        ("house.room:destroy", "module house.room has no 'destroy'; define it there"),
        ("house.room:NUMBER", "NUMBER is of type int and cannot be called; name a function"),
    ],
)
def test_each_fault_is_told_with_its_remedy(reference: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_factory(reference, "data.factory")
    assert str(caught.value) == f"data.factory={reference!r}: {message}"


def test_a_syntax_error_names_the_module() -> None:
    with pytest.raises(ConfigError, match=r"importing house\.broken raised SyntaxError: .*correct"):
        load_factory("house.broken:build", "data.factory")


@pytest.mark.parametrize("name", ["build", "Builder", "builder", "partial", "decorated"])
def test_the_digest_is_that_of_the_defining_file(name: str, package: Path) -> None:
    function = load_factory(f"house.room:{name}", "data.factory")
    before = source_sha256(function)
    assert source_sha256(functools.partial(function)) == before
    with (package / "room.py").open("a") as room:
        room.write("\n# edited\n")
    assert source_sha256(function) != before


@pytest.mark.parametrize("helper", ["layers", "den.layers"])
def test_the_digest_holds_for_what_the_file_imports(
    helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path.joinpath(*helper.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text("WIDTH = 8\n")
    (tmp_path / "nets_with_helper.py").write_text(f"import {helper}\n\ndef build(): ...\n")
    (tmp_path / "stranger.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("layers", "den", "den.layers", "nets_with_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    function = load_factory("nets_with_helper:build", "model.factory")
    before = source_sha256(function)
    (tmp_path / "stranger.py").write_text("# not imported\n")
    assert source_sha256(function) == before
    path.write_text("WIDTH = 16\n")
    assert source_sha256(function) != before


def test_a_function_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        source_sha256(len)
    assert str(caught.value) == (
        "len has no source file, so changes of it would go unnoticed; "
        "name a function that is defined in a file"
    )
