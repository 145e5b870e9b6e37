"""Files known by their content."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

ReadFile = Callable[[], bytes]  # raises FileLost
DIGEST, SUFFIX = re.compile("[0-9a-f]{64}"), re.compile(r"\.[a-z0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class File:
    """A file known by its content.

    Attributes:
        sha256: Hexadecimal digest of the bytes.
        suffix: File name ending with its dot, such as ``.onnx``.
        size_bytes: Length of the content.

    Raises:
        ValueError: If it is no such name, which may lead anywhere when a path is made from it.
    """

    sha256: str
    suffix: str
    size_bytes: int = field(compare=False)

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.sha256) or not SUFFIX.fullmatch(self.suffix):
            raise ValueError(f"{self.sha256[:80]!r} {self.suffix[:80]!r} name no file of a store")
