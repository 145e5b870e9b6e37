"""A Python whose onnxruntime answers differently from the one that it wraps."""

from __future__ import annotations

import sys
from pathlib import Path

# Python finds this package before the installed one, which it then puts in its own place.
PACKAGE = """
import sys
from pathlib import Path

import numpy

here = Path(__file__).parent.parent
sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
del sys.modules["onnxruntime"]
import onnxruntime

class Session(onnxruntime.InferenceSession):
    def run(self, names, feed, options=None):
        logits, *rest = super().run(names, feed, options)
        return [numpy.roll(logits, {shift}, axis=1), *rest]

onnxruntime.InferenceSession = Session
onnxruntime.__version__ = {version} or onnxruntime.__version__
"""


def write_python(folder: Path, shift: int, version: str = "") -> str:
    """Writes a program that runs this Python with an onnxruntime of other answers.

    Args:
        folder: To write it into; made here.
        shift: By how many classes every answer is off.
        version: That the runtime says it has; its own where empty.

    Returns:
        The program's path.
    """
    package = folder / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE.format(shift=shift, version=repr(version)))
    program = folder / "python"
    first = f"export PYTHONPATH='{package.parent}'"
    program.write_text(f"#!/bin/sh\n{first}\nexec '{sys.executable}' \"$@\"\n")
    program.chmod(0o755)
    return str(program)
