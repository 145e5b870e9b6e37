"""Fashion-MNIST through its real chain; the network is used once for all tests."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.config.data import FashionMnistConfig
from search.data import Splits, describe, fashion_mnist, load
from search.data.fashion_mnist import CACHE, INSTALLED, PACKAGE, SHA256, obtain, read_folder
from search.errors import ConfigError
from search.records.data import Dataset

NOWHERE = Path("/nonexistent")
# Nothing listens on the discard port of this machine.
NO_SERVER = "http://127.0.0.1:9"
SIXTH = 1 / 6


def config(root: str | None, **changes: Any) -> FashionMnistConfig:
    values: dict[str, Any] = {
        "name": "fashion_mnist",
        "root": root,
        "validation_share": SIXTH,
        "mean": None,
        "std": None,
        "memory_limit_bytes": 4_000_000_000,
    }
    return FashionMnistConfig(**(values | changes))


@pytest.fixture(scope="session")
def fetched(fashion_home: Path) -> tuple[Path, Dataset, Splits]:
    """Working directory, description and splits as a first study finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(fashion_home)
        dataset = describe(config(None))
        return fashion_home, dataset, load(dataset)


@pytest.fixture(scope="session")
def folder(fashion: Path) -> Path:
    """A folder with the four original files."""
    return fashion


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without Debian's tools."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Path:
    """A stand-in for apt-get that knows the package only after an update; logs its calls."""
    inside = tmp_path / "package" / INSTALLED.relative_to("/")
    inside.mkdir(parents=True)
    for name in SHA256:
        shutil.copyfile(folder / name, inside / name)
    (tmp_path / "package" / "DEBIAN").mkdir()
    (tmp_path / "package" / "DEBIAN" / "control").write_text(
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: x\n"
    )
    built = tmp_path / "built.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", str(tmp_path / "package"), str(built)], check=True)
    script = tmp_path / "bin" / "apt-get"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        f'case "$*" in *update*) touch {tmp_path}/updated; exit 0;; esac\n'
        f"if [ -e {tmp_path}/updated ]; then cp {built} package.deb; exit 0; fi\n"
        'echo "E: Unable to locate package" >&2; exit 100\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return tmp_path


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    # Replaced, not rewritten: the copies are links to the originals.
    file.unlink()
    file.write_bytes(content)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for name in SHA256:
        (to / name).symlink_to(folder / name)
    return to


def test_shapes_labels_and_statistics(fetched: tuple[Path, Dataset, Splits]) -> None:
    _, dataset, splits = fetched
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.classes == 10
    assert dataset.labels[0] == "T-shirt/top"
    assert dataset.sizes == (50_000, 10_000, 10_000)
    # The figures that the data set's users quote for all 60 000.
    assert dataset.mean == pytest.approx((0.2860,), abs=1e-3)
    assert dataset.std == pytest.approx((0.3530,), abs=1e-3)
    assert splits.train.read([0, 1]).shape == (2, 1, 28, 28)
    assert splits.train.images[0].dtype == np.uint8
    for split, each in ((splits.train, 5000), (splits.validation, 1000), (splits.test, 1000)):
        assert split.in_memory
        assert len(split) == len(split.images)
        assert np.bincount(split.labels).tolist() == [each] * 10


def test_the_fetched_files_are_kept_whole(fetched: tuple[Path, Dataset, Splits]) -> None:
    cache = fetched[0] / CACHE
    if INSTALLED.is_dir():
        assert not cache.exists()
    else:
        assert sorted(path.name for path in cache.iterdir()) == sorted(SHA256)


@pytest.mark.usefixtures("no_tools")
def test_kept_files_are_used_again(
    fetched: tuple[Path, Dataset, Splits], folder: Path, tmp_path: Path
) -> None:
    cache = copy(folder, tmp_path / "cache")
    assert obtain(NOWHERE, cache, NO_SERVER) == read_folder(folder)
    assert obtain(folder, NOWHERE, NO_SERVER).keys() == SHA256.keys()


def test_a_root_gives_the_same_data(fetched: tuple[Path, Dataset, Splits], folder: Path) -> None:
    assert describe(config(str(folder))) == fetched[1]


def test_a_root_that_lacks_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    root = copy(folder, tmp_path / "root")
    missing = root / "t10k-labels-idx1-ubyte.gz"
    missing.unlink()
    with pytest.raises(ConfigError) as caught:
        describe(config(str(root)))
    assert str(caught.value) == (
        f"data.root={str(root)!r}: cannot read {str(missing)!r} (No such file or directory); "
        f"put the data set's original files {', '.join(SHA256)} there, or set data.root=null to "
        "have them fetched"
    )


def test_a_root_with_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    root = copy(folder, tmp_path / "root")
    damage(root / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(ConfigError) as caught:
        describe(config(str(root)))
    message = str(caught.value)
    assert message.startswith(f"data.root={str(root)!r}: t10k-labels-idx1-ubyte.gz in ")
    assert "is not the original (SHA-256 " in message
    assert "needed 8d3605d196f4..." in message
    assert message.endswith("or set data.root=null to have them fetched")


def test_a_fresh_system_updates_lists_of_its_own_and_mends_the_cache(
    tools: Path, folder: Path
) -> None:
    cache = copy(folder, tools / "cache")
    damage(cache / "train-labels-idx1-ubyte.gz")
    assert obtain(NOWHERE, cache, NO_SERVER) == read_folder(folder)
    first, update, second = (tools / "calls").read_text().splitlines()
    assert first == f"-qq download {PACKAGE}"
    assert update.endswith("-qq update")
    assert second.endswith(f"-qq download {PACKAGE}")
    assert all(f"Dir::{kind}=" in update for kind in ("State", "Cache"))
    assert read_folder(cache) == read_folder(folder)
    assert sorted(path.name for path in cache.iterdir()) == sorted(SHA256)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Says nothing."""


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a web server, and the folder that it serves."""
    root = copy(folder, tmp_path / "served")
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", root
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_tools")
def test_the_web_is_the_last_way(served: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert obtain(NOWHERE, cache, served[0]) == read_folder(folder)
    assert read_folder(cache) == read_folder(folder)


@pytest.mark.usefixtures("no_tools")
def test_a_changed_file_from_the_web_is_refused_and_not_kept(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    address, root = served
    damage(root / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ConfigError) as caught:
        obtain(NOWHERE, tmp_path / "cache", address)
    assert f"train-labels-idx1-ubyte.gz in {address!r} is not the original" in str(caught.value)
    assert not (tmp_path / "cache").exists()


class Endless(Quiet):
    """Sends zeros for ever, many at a time or few."""

    def do_GET(self) -> None:
        """Answers."""
        self.send_response(200)
        self.end_headers()
        drop, pause_s = (b"\0", 0.05) if "slow" in self.path else (bytes(1 << 16), 0.0)
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(drop)
                time.sleep(pause_s)


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize(
    ("pace", "reason"),
    [("slow", r"failed \(TimeoutError: not there after 0\.5 s"), ("fast", "is not the original")],
)
def test_a_download_without_end_is_given_up(
    tmp_path: Path, pace: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "_FETCH_TIMEOUT_S", 0.5 if pace == "slow" else 60)
    monkeypatch.setattr(fashion_mnist, "_MOST_BYTES", 1 << 20)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ConfigError, match=reason):
                obtain(NOWHERE, tmp_path, f"http://127.0.0.1:{server.server_address[1]}/{pace}")
        finally:
            server.shutdown()
            thread.join()


def test_a_device_in_a_files_place_is_not_read(folder: Path, tmp_path: Path) -> None:
    root = copy(folder, tmp_path / "copied")
    (root / "train-labels-idx1-ubyte.gz").unlink()
    (root / "train-labels-idx1-ubyte.gz").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"train-labels-idx1-ubyte\.gz' is no file"):
        describe(config(str(root)))


@pytest.mark.usefixtures("no_tools")
def test_no_way_at_all_names_every_reason_and_the_remedies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        obtain(NOWHERE, tmp_path / "cache", NO_SERVER)
    message = str(caught.value)
    assert message.startswith("data.root=null: cannot get Fashion-MNIST (")
    assert f"cannot read {str(NOWHERE / 'train-images-idx3-ubyte.gz')!r}" in message
    assert str(tmp_path / "cache") in message
    assert "this system has no apt-get and dpkg-deb" in message
    assert f"{NO_SERVER}/train-images-idx3-ubyte.gz failed (URLError: " in message
    assert message.endswith(
        f"install Debian's package {PACKAGE}, or set data.root to a folder with {', '.join(SHA256)}"
    )
    assert "\n" not in message


@pytest.mark.usefixtures("no_tools")
def test_a_cache_that_cannot_be_written_only_warns(
    served: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert obtain(NOWHERE, blocked / "cache", served[0]).keys() == SHA256.keys()
    assert "cannot keep Fashion-MNIST in" in caplog.text
