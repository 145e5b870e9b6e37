"""What the user's code sets for the whole process does not reach the search."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search.networks.custom import build_custom
from tests.unit.test_custom import SHAPE, spec

UNSETTLING = {
    "chdir": "import os; os.chdir('/')",
    "grad": "import torch; torch.set_grad_enabled(False)",
    "dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
}
NETWORK = """
from tests.unit.test_custom import Plain

def build():
    {inside}
    return Plain().float()
"""


def settings() -> tuple[Any, ...]:
    torches = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    return (Path.cwd(), *torches)


@pytest.fixture
def as_before() -> Iterator[None]:
    """Restores for other tests what a failing one would leave."""
    directory, grad, kind, threads = settings()
    yield
    os.chdir(directory)
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(kind)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("is_inside", [False, True], ids=["module", "factory"])
@pytest.mark.parametrize("code", UNSETTLING.values(), ids=UNSETTLING)
def test_what_it_sets_for_the_process_is_restored(
    code: str, is_inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unsettling", raising=False)
    text = NETWORK.format(inside=code) if is_inside else code + NETWORK.format(inside="")
    (tmp_path / "unsettling.py").write_text(text)
    before = settings()
    given = replace(spec("build"), factory="unsettling:build")
    module = build_custom(given)
    assert settings() == before
    assert module(torch.rand(2, *SHAPE)).requires_grad


def test_gradients_are_recorded_although_the_first_to_load_torch_turned_them_off(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from search.config.factory import load_factory\n"
        "assert 'torch' not in sys.modules\n"
        "load_factory('unsettling:build', 'model.factory')\n"
        "import torch; assert torch.is_grad_enabled()"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    (tmp_path / "unsettling.py").write_text(f"{UNSETTLING['grad']}\n\ndef build(): ...\n")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
