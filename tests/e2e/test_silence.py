"""Nothing is told to anybody, and nothing is left about: docs/security.md, "Telemetry"."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tests.e2e.searching import SMOKE, STUDY, begin_beside, copied
from tests.watch import Watched, has_strace, watched


@pytest.fixture(scope="module")
def doings(
    finished: tuple[Path, str], search_watched: Watched, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Watched]:
    """A search, one with workers, a sync, a pick and its bundle, each in a home of its own."""
    folder = copied(finished[0], tmp_path_factory.mktemp("copied"))
    aside = tmp_path_factory.mktemp("homes")
    out = tmp_path_factory.mktemp("picked") / "bundle"
    words = commands.line("search.pick", f"study={STUDY}", "prefer=accuracy", f"out={out}")
    picked = watched(words, folder, aside / "pick")
    assert picked.result.returncode == 0, picked.result
    predict = [sys.executable, str(out / "predict.py")]
    verified = watched([*predict, "--verify"], out, aside / "verify")
    np.save(out.parent / "image.npy", np.zeros((1, 28, 28), np.uint8))
    classified = watched([*predict, "../image.npy"], out, aside / "classify")
    assert verified.result.returncode == classified.result.returncode == 0, (verified, classified)
    beside = begin_beside(folder, tmp_path_factory.mktemp("beside"), "evaluate", "finetune")
    words = commands.line("search.run", *SMOKE, "study.n_trials=4", "finalists.count=0", *WORKER)
    worked = watched(words, beside, aside / "workers")
    assert worked.result.returncode == 0, worked.result
    for path in (beside / "mlruns").glob("mlflow.db*"):
        path.unlink()
    synced = watched(commands.line("search.sync", f"study={STUDY}"), beside, aside / "sync")
    assert synced.result.returncode == 0, synced.result
    return {
        "search": search_watched,
        "workers": worked,
        "sync": synced,
        "pick": picked,
        "verify": verified,
        "classify": classified,
    }


WORKER = ("engine=local", "engine.workers=1")
DOINGS = pytest.mark.parametrize(
    "doing", ["search", "workers", "sync", "pick", "verify", "classify"]
)


@DOINGS
def test_a_home_stays_empty(doings: dict[str, Watched], doing: str) -> None:
    assert [str(path) for path in doings[doing].home.rglob("*")] == []


@pytest.mark.skipif(not has_strace(), reason="there is no strace here: install Debian's package")
@DOINGS
def test_nobody_is_spoken_to_and_nothing_strewn(doings: dict[str, Watched], doing: str) -> None:
    assert doings[doing].calls, "nothing was seen"
    assert doings[doing].strangers() == []
    assert doings[doing].strewn() == []


@pytest.mark.skipif(not has_strace(), reason="there is no strace here: install Debian's package")
def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    """As onnxruntime does it: a look-up from a thread, and a file in the home."""
    code = (
        "import pathlib, socket, threading\n"
        "def tell():\n"
        "    (pathlib.Path.home() / '.diary').mkdir()\n"
        "    (pathlib.Path.home() / '.diary' / 'id').write_text('me')\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:\n"
        "        far.connect(('192.0.2.1', 53))\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:\n"
        "    near.connect(('127.0.0.1', 53))\n"
        "pathlib.Path('here').write_text('mine')\n"
        "thread = threading.Thread(target=tell)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    (tmp_path / "work").mkdir()
    seen = watched([sys.executable, "-c", code], tmp_path / "work", tmp_path / "home")
    assert seen.result.returncode == 0, seen.result
    (call,) = seen.strangers()
    assert "192.0.2.1" in call
    diary = seen.home / ".diary"
    assert seen.strewn() == [str(diary), str(diary / "id")]
