"""A working directory of a user who has folders of the project's own names."""

from __future__ import annotations

from pathlib import Path

FACTORY = "models.mine:build"
LAYERS = """
from torch import nn

def block(inputs, outputs):
    layers = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers)
"""
MINE = """
from torch import nn
from models.layers import block

def build(classes=10):  # of images of 28x28 pixels
    import models.layers as late
    assert late.block is block
    head = nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * 7 * 7, classes)
    return nn.Sequential(block(1, 8), *head)
"""


def fill(folder: Path, *, search: bool, package: bool = True) -> Path:
    """Makes ``models/`` and ``conf/`` of the user's own in a folder, and returns it.

    Args:
        folder: To be filled.
        search: Whether there is a ``search/`` too, which ``python -m search.run`` would take.
        package: Whether ``models/`` has an ``__init__.py``, as many have not.
    """
    for name in ("models", "conf", *(["search"] if search else [])):
        (folder / name).mkdir(parents=True)
    (folder / "models" / "layers.py").write_text(LAYERS)
    (folder / "models" / "mine.py").write_text(MINE)
    if package:
        (folder / "models" / "__init__.py").touch()
    (folder / "conf" / "__init__.py").write_text("raise RuntimeError('the user\\'s conf')\n")
    (folder / "conf" / "config.yaml").write_text("defaults: [nothing]\n")
    if search:
        (folder / "search" / "__init__.py").write_text("raise RuntimeError('the user\\'s')\n")
    return folder
