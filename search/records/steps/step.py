"""What all steps share: the key under which the store remembers a result.

A step's ``kind`` names the module in ``search.stages`` whose ``run(step, artifacts)`` does it, so
the coordinator describes work without importing torch or ONNX. Raise ``version`` when a stage
begins to answer differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from search.process import registry
from search.records.files import File
from search.records.network import Edit

R = TypeVar("R")
Resource = Literal["train", "device", "light"]


class ArtifactStore(Protocol):
    """Where a stage takes its input files from and leaves its output files.

    Attributes:
        images: Folder of decoded images, for all who read the same data here.
    """

    images: Path

    def path(self, file: File) -> Path:
        """Returns where the content of ``file`` lies; the stage only reads it."""

    def put(self, content: bytes, suffix: str) -> File:
        """Keeps ``content`` for good and returns its name."""

    def put_parts(self, parts: Iterable[bytes], suffix: str) -> File:
        """Keeps the ``parts`` as one content, which need not fit into memory."""


@dataclass(frozen=True)
class Step(Generic[R]):
    """One unit of work whose result depends on its fields alone.

    ``stage`` names the function ``module:run`` that does it; where it is empty, that of our own
    module of the ``kind``.
    """

    kind: ClassVar[str]
    stage: ClassVar[str] = ""
    version: ClassVar[int]
    resource: ClassVar[Resource]
    result: ClassVar[type]

    @property
    def runs(self) -> str:
        """Reference of the function that does it."""
        return self.stage or f"search.stages.{self.kind}:run"

    @property
    def calls(self) -> tuple[str, ...]:
        """References of what the function calls that may be a plug-in's."""
        return ()

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 of kind, version and fields: the step's identity.

        Where plug-ins take part in the answer, their versions belong to it.
        """
        identity = {"kind": self.kind, "version": self.version, "inputs": _plain(self)}
        modules = [type(self).__module__, *(name.partition(":")[0] for name in self.calls)]
        if plugins := [plugin for module in modules if (plugin := registry.origin(module))]:
            identity["plugin"] = ", ".join(plugins)
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Turns nested dataclasses into JSON values, leaving out fields that do not compare."""
    if is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
        # Rebuilding the network calls what may be a plug-in's.
        if isinstance(value, Edit) and (plugin := registry.origin(value.apply.partition(":")[0])):
            plain["plugin"] = plugin
        return plain
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
