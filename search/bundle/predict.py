#!/usr/bin/env python3
"""Classifies images with the model beside this file; needs nothing but numpy and onnxruntime.

    python predict.py image.png     prints the probability of every class
    python predict.py array.npy     the same for stored pixels
    python predict.py --verify      checks the files and the model's answers
    python predict.py --bench       times the model on this machine

An array holds pixels ``[H, W]``, ``[C, H, W]`` or ``[N, C, H, W]``, as bytes or as numbers in 0..1.
From Python: ``from predict import Classifier``.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # a numpy.py that was put beside this file is not numpy
    _beside = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib may be shadowed
    sys.path[:] = [place for place in sys.path if os.path.realpath(place) != _beside]
# Or onnxruntime, once imported, keeps a diary of what it runs and sends it to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import argparse
import hashlib
import io
import json
import math
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Shape = tuple[int, int, int]  # channels, height, width
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
FILES = (
    "MODEL_CARD.md", "labels.json", "model.onnx", "predict.py", "requirements.txt",
    "runtime.json", "samples.npz",
)  # fmt: skip
SHOWN, BENCH_S, WARM_S, WARM_RUNS = 10, 3.0, 1.0, 50
ARRAY = "give a .npy array"
# Pillow guesses by the content, and hands some formats to other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


class Refused(Exception):  # noqa: N818 - an answer to the user, not a fault of this program
    """An input that cannot be used; the text says why."""


class Classifier:
    """The model in a session with the very options that it was measured with.

    Args:
        folder: With ``model.onnx``, ``runtime.json`` and ``labels.json``.

    Raises:
        Refused: When this onnxruntime cannot open the model.
    """

    def __init__(self, folder: Path = HERE) -> None:
        self.runtime: dict[str, Any] = json.loads(
            (folder / "runtime.json").read_text(encoding="utf-8")
        )
        self.labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        try:
            self._session = open_session(str(folder / "model.onnx"), self.runtime)
        except Exception as error:  # onnxruntime's errors have no other base
            raise Refused(
                f"model.onnx: onnxruntime {onnxruntime.__version__} cannot open it "
                f"({_one_line(error)}); pip install -r requirements.txt"
            ) from error

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image."""
        _, channels, height, width = self.runtime["input"]["shape"]
        return channels, height, width

    def logits(self, images: Floats) -> Floats:
        """Returns the model's outputs ``[n, classes]`` for pixels ``[n, C, H, W]`` in 0..1."""
        outputs: list[Floats] = self._session.run(None, {self.runtime["input"]["name"]: images})
        return outputs[0]

    def probabilities(self, images: Floats) -> Floats:
        """Returns the classes' probabilities ``[n, classes]`` for pixels in 0..1."""
        return softmax(self.logits(images))


def open_session(model: str | bytes, runtime: dict[str, Any]) -> Any:
    """Opens a model, a path or its bytes, with the options of ``runtime.json``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime["intra_op_num_threads"]
    options.inter_op_num_threads = runtime["inter_op_num_threads"]
    options.execution_mode = {
        "sequential": onnxruntime.ExecutionMode.ORT_SEQUENTIAL,
        "parallel": onnxruntime.ExecutionMode.ORT_PARALLEL,
    }[runtime["execution_mode"]]
    options.graph_optimization_level = {
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[runtime["graph_optimization_level"]]
    options.log_severity_level = 3
    for key, value in runtime["session_entries"].items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=runtime["providers"])


def softmax(logits: Floats) -> Floats:
    """Turns logits ``[n, classes]`` into probabilities."""
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


# ---- images


def read_images(path: Path, shape: Shape) -> Floats:
    """Reads an image or array file as pixels ``[n, C, H, W]`` in 0..1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".npy":
        return _read_array(path, shape)
    if shape[0] not in (1, 3):
        raise Refused(f"{path}: the model takes {shape[0]} channels, not grey or colour; {ARRAY}")
    pixels = _decode(path, content, shape).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)[None].astype(np.float32) / np.float32(255)


def _read_array(path: Path, shape: Shape) -> Floats:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy reads a damaged header with Python's own parser
        raise Refused(f"{path}: is no array of numbers ({_one_line(error)})") from error
    if array.dtype.kind not in "uif":
        raise Refused(f"{path}: holds {array.dtype}, needs numbers")
    images = array.reshape((1,) * max(0, 4 - array.ndim) + array.shape)
    if images.shape[1:] != shape or len(images) == 0:
        raise Refused(f"{path}: has shape {list(array.shape)}, needs {list(shape)} or n of them")
    scaled: Floats = images.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
    if not (scaled.min() >= 0 and scaled.max() <= 1):
        raise Refused(f"{path}: numbers must lie in 0..1; store pixels in 0..255 as bytes (uint8)")
    return scaled


def _decode(path: Path, content: bytes, shape: Shape) -> Bytes:
    """Returns pixels ``[H, W, C]``, with Pillow where it is installed."""
    channels, height, width = shape
    try:
        from PIL import Image
    except ImportError:
        return decode_png(path, content, shape)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"{path}: is no image that can be read ({error})") from error
    if image.size != (width, height):
        was = f"{image.width}x{image.height}"
        print(f"note: {path} is scaled from {was} to {width}x{height}", file=sys.stderr)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image).reshape(height, width, channels)


# Without Pillow: PNG files of the model's own size. Source: Portable Network Graphics
# Specification, third edition, W3C.


class Png(NamedTuple):
    """The parts of a PNG file that matter here."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    palette: Bytes
    data: bytes


def decode_png(path: Path, content: bytes, shape: Shape) -> Bytes:
    """Returns pixels ``[H, W, C]`` of a PNG file of the size that the model takes."""
    remedy = "pip install pillow, which reads it"
    if not content.startswith(PNG):
        raise Refused(f"{path}: is no PNG file; {remedy}")
    try:
        png = _read_png(content)
        if (png.height, png.width) != shape[1:]:
            needed = f"{shape[2]}x{shape[1]}"
            raise Refused(f"{path}: is {png.width}x{png.height}, needs {needed}; scale it")
        if png.depth == 16 or png.interlaced or png.colour not in PNG_CHANNELS:
            raise Refused(f"{path}: is a kind of PNG that is not read here; {remedy}")
        pixels = _pixels(png)
    except (ValueError, IndexError, zlib.error) as error:
        raise Refused(f"{path}: is damaged ({error})") from error
    return _convert(pixels, shape[0])


def _read_png(content: bytes) -> Png:
    kind, header, palette, data, at = b"", b"", b"", b"", len(PNG)
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        body, end = content[at + 8 : at + 8 + length], at + 12 + length
        if content[end - 4 : end] != zlib.crc32(kind + body).to_bytes(4, "big"):
            raise ValueError("a part is cut off or changed")
        header, palette = body if kind == b"IHDR" else header, body if kind == b"PLTE" else palette
        data += body if kind == b"IDAT" else b""
        at = end
    if kind != b"IEND":
        raise ValueError("its end is missing")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    return Png(width, height, header[8], header[9], header[12] != 0, colours, data)


def _pixels(png: Png) -> Bytes:
    """Returns ``[H, W, channels]`` as the file has them, palettes looked up."""
    channels = PNG_CHANNELS[png.colour]
    length, step = (
        math.ceil(png.width * channels * png.depth / 8),
        max(1, channels * png.depth // 8),
    )
    whole = png.height * (length + 1)
    data = zlib.decompressobj().decompress(png.data, whole + 1)
    if len(data) != whole:
        raise ValueError("it has too few or too many pixels")
    rows = _unfilter(np.frombuffer(data, np.uint8).reshape(png.height, length + 1), step)
    if png.depth < 8:
        bits = np.unpackbits(rows, axis=1).reshape(png.height, -1, png.depth)
        values = bits.dot(1 << np.arange(png.depth - 1, -1, -1))[:, : png.width]
        rows = (values * (1 if png.colour == 3 else 255 // (2**png.depth - 1))).astype(np.uint8)
    pixels: Bytes = rows.reshape(png.height, png.width, channels)
    return png.palette[pixels[..., 0]] if png.colour == 3 else pixels


def _unfilter(lines: Bytes, step: int) -> Bytes:
    """Undoes the prediction of every byte from those to the left and above."""
    rows, above = [], [0] * (lines.shape[1] - 1)
    for kind, *row in lines.tolist():
        for x, value in enumerate(row):
            left, corner = (row[x - step], above[x - step]) if x >= step else (0, 0)
            up = above[x]
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda near: abs(guess - near))
            row[x] = (value + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
        rows.append(row)
        above = row
    return np.array(rows, np.uint8)


def _convert(pixels: Bytes, channels: int) -> Bytes:
    """Drops transparency; turns colour into grey as ITU-R BT.601 has it."""
    colours = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
    if colours.shape[2] == channels:
        return colours
    if channels == 3:
        return np.repeat(colours, 3, axis=2)
    grey = colours.astype(np.uint32).dot(np.array([19595, 38470, 7471], np.uint32))
    return np.asarray((grey + 0x8000) >> 16, np.uint8)[..., None]


def predict(path: Path) -> None:
    """Prints the most probable classes of each image in a file."""
    classifier = Classifier()
    images = read_images(path, classifier.shape)
    width = max(map(len, classifier.labels))
    for number, row in enumerate(classifier.probabilities(images)):
        if len(images) > 1:
            print(f"image {number}")
        for index in np.argsort(-row, kind="stable")[:SHOWN]:
            print(f"{classifier.labels[index]:<{width}}  {100 * row[index]:6.2f} %")


def verify() -> int:
    """Checks all files by their sums, then the model by its answers; returns the exit status."""
    faults = _check_sums() or _check_answers()
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"verified: {len(FILES)} files are whole, and the model answers as it should")
    return 1 if faults else 0


def _check_sums() -> list[str]:
    try:
        lines = (HERE / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return [f"{SUMS}: is missing or damaged; this is no whole bundle"]
    faults = [f"{name}: is not listed in {SUMS}" for name in FILES if name not in sums]
    faults += [
        f"{name}: is listed in {SUMS}, and no part of it" for name in sorted({*sums} - {*FILES})
    ]
    for name in FILES:
        if not (HERE / name).is_file():
            faults.append(f"{name}: is missing")
        elif hashlib.sha256((HERE / name).read_bytes()).hexdigest() != sums.get(name):
            faults.append(f"{name}: was changed")
    there = {path.name for path in HERE.iterdir()} - {*FILES, SUMS, "__pycache__"}
    return faults + [f"{name}: is no part of this bundle" for name in sorted(there)]


def _check_answers() -> list[str]:
    try:
        classifier = Classifier()
        images, wanted = _samples()
        answers, allowed = classifier.logits(images), classifier.runtime["tolerance"]
    except Refused as refused:
        return [str(refused)]
    except Exception as fault:  # whatever is wrong is said in one line
        return [f"the model cannot be tried ({_one_line(fault)})"]
    error = float(np.abs(answers - wanted).max() / np.abs(wanted).max())
    if error <= allowed:
        return []
    here, there = f"onnxruntime {onnxruntime.__version__}", classifier.runtime["runtime"]
    return [
        f"model.onnx: its answers differ by {error:.2g} of the largest, and {allowed:g} is "
        f"allowed; this processor or version computes otherwise ({here}, measured in {there})"
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _samples() -> tuple[Floats, Floats]:
    """Returns images ``[n, C, H, W]`` and the logits ``[n, classes]`` expected of them."""
    with np.load(HERE / "samples.npz", allow_pickle=False) as samples:
        return samples["images"], samples["logits"]


def bench() -> None:
    """Times runs on the samples, one after another, with as many images as were measured with."""
    classifier = Classifier()
    measured = classifier.runtime["measured"]
    size = measured["batch_size"]
    images, _ = _samples()
    batch = images.take(range(size), axis=0, mode="wrap")
    _times_ms(classifier, batch, WARM_S, WARM_RUNS)  # the first runs are slower, and do not count
    times_ms = _times_ms(classifier, batch, BENCH_S)
    median, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    print(f"each run: {'one image' if size == 1 else f'a batch of {size} images'}")
    print(f"here:     median {median:.4g} ms, p90 {p90:.4g} ms, p99 {p99:.4g} ms")
    print(f"measured: {measured['latency_ms']:.4g} ms on {measured['device']}")


def _times_ms(
    classifier: Classifier, batch: Floats, limit_s: float, limit: float = math.inf
) -> list[float]:
    """Runs until time or number reaches its limit, at least once."""
    times_ms: list[float] = []
    end = time.perf_counter() + limit_s
    while not times_ms or (len(times_ms) < limit and time.perf_counter() < end):
        begin = time.perf_counter()
        classifier.logits(batch)
        times_ms.append((time.perf_counter() - begin) * 1e3)
    return times_ms


def main() -> int:
    """Runs the command line and returns its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the letters of a label
        sys.stdout.reconfigure(errors="backslashreplace")
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", help="image or .npy array")
    what.add_argument("--verify", action="store_true", help="check the files and the answers")
    what.add_argument("--bench", action="store_true", help="time the model here")
    given = parser.parse_args()
    try:
        if given.verify:
            return verify()
        if given.bench:
            bench()
        else:
            predict(Path(given.file))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
