"""Files that lead elsewhere, never end, unpack to too much, or are another kind than they say."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

import models
from search.config.data import FashionMnistConfig, ImageFolderConfig
from search.data import describe
from search.engine.store import Store
from search.errors import ConfigError
from search.networks.checkpoints import load_checkpoint
from search.recipes.setup import _read_checkpoint
from search.records.deployable import Deployable
from search.records.files import File
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA

HEX = "0" * 64


# ---- names in the store


@pytest.mark.parametrize(
    ("sha256", "suffix"),
    [
        ("../../x", ".onnx"),
        ("/etc/passwd", ""),
        (HEX, "/../../../x"),
        (HEX, ".onnx/../x"),
        (HEX, ""),
        (HEX, "." + "a" * 99),
        (HEX, ".a\n"),
        (HEX + "\n", ".onnx"),
        ("A" * 64, ".onnx"),
        (HEX[1:], ".onnx"),
        ("", ""),
    ],
)
def test_a_name_of_a_file_leads_nowhere_else(sha256: str, suffix: str) -> None:
    with pytest.raises(ValueError, match="name no file"):
        File(sha256, suffix, 1)
    with pytest.raises(ValidationError):
        TypeAdapter(Deployable).validate_python(
            {
                "model": {"sha256": sha256, "suffix": suffix, "size_bytes": 1},
                "bits": 8,
                "session_entries": [],
            }
        )


def test_an_entry_that_leads_out_of_the_store_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"secret")
    step = make_quantize(File(HEX, ".onnx", 4), 8, "u8s8", DATA, 3, 0)
    model = store.put(b"model", ".onnx")
    store.save(step, make_deployable(model, 8, ()), 1.0)
    (entry,) = (store.root / "steps").rglob("*.json")
    entry.write_text(entry.read_text().replace(model.sha256, "../../../secret"))
    assert store.load(step) is None
    assert "is damaged" in caplog.text


# ---- checkpoints


def network() -> torch.nn.Module:
    return models.build("cnn", (1, 8, 8), 10, 4)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(network(), path, "model.checkpoint")
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_checkpoint_that_unpacks_to_much_more_is_not_unpacked(tmp_path: Path) -> None:
    whole = saved(network().state_dict(), tmp_path / "whole.pt")
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            large = bytes(1 << 24) if member.filename.endswith("/data/0") else b""
            target.writestr(member.filename, source.read(member) + large)
    assert "cannot be read as weights (ValueError)" in refusal(bomb)


ODD: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda weights: weights.to_sparse(),
    "complex": lambda weights: weights.to(torch.complex64),
    "only a shape": lambda weights: weights.to("meta"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_odd_kinds(tmp_path: Path, kind: str) -> None:
    state = network().state_dict()
    state["head.weight"] = ODD[kind](state["head.weight"])
    said = refusal(saved(state, tmp_path / "odd.pt"))
    assert "head.weight is no dense tensor" in said or "cannot be read as weights" in said


def test_names_that_are_no_text(tmp_path: Path) -> None:
    state: dict[Any, Any] = dict(network().state_dict())
    state[5] = state.pop("head.weight")
    assert "model.checkpoint: " in refusal(saved(state, tmp_path / "odd.pt"))


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="is no file"):
        _read_checkpoint(str(tmp_path / "weights.pt"))
    with pytest.raises(ConfigError, match="is no file"):
        _read_checkpoint("/dev/zero")


# ---- data


FOLDER = ImageFolderConfig(0.5, None, None, 1 << 30, "image_folder", "", 1, None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            for copy in range(4):
                path = tmp_path / split / label / f"{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 50 * number + copy).save(path)
    return tmp_path


def folder_refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        describe(replace(FOLDER, root=str(root), **changes))
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_a_pipe_is_no_image(root: Path, image_size: tuple[int, int] | None) -> None:
    os.mkfifo(root / "train" / "cat" / "9.png")
    assert "it is no file" in folder_refusal(root, image_size=image_size)


def test_links_that_lead_in_circles_end(root: Path) -> None:
    for name in ("a", "b", "c"):  # each leads to all three: three to the power of forty ways
        (root / "train" / "cat" / name).symlink_to(root / "train" / "cat")
    assert sum(describe(replace(FOLDER, root=str(root))).sizes) == 16


def test_an_image_is_not_handed_to_another_program(root: Path) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (root / "train" / "cat" / "1.png").write_bytes(script)
    assert "UnidentifiedImageError" in folder_refusal(root)  # not opened at all


def huge_png(side: int) -> bytes:
    """A small file that claims to be a large image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        sum32 = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sum32

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_an_image_that_unpacks_to_too_much(root: Path, side: int) -> None:
    (root / "train" / "cat" / "1.png").write_bytes(huge_png(side))
    said = folder_refusal(root, image_size=(8, 8))
    assert "DecompressionBomb" in said


def test_an_archive_that_is_not_the_data_set_is_not_unpacked(tmp_path: Path) -> None:
    import gzip

    config = FashionMnistConfig(0.2, None, None, 1 << 30, "fashion_mnist", str(tmp_path))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(ConfigError, match="is not the original"):
        describe(config)


def test_a_picture_for_a_bundle_is_not_handed_to_another_program(tmp_path: Path) -> None:
    from search.bundle.predict import Refused, read_images

    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(Refused, match="is no image"):
        read_images(path, (1, 8, 8))
    path.write_bytes(huge_png(100_000))
    with pytest.raises(Refused, match="is no image"):
        read_images(path, (1, 8, 8))
    assert path.stat().st_size < 1 << 16
