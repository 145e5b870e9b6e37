"""Types of ``conf/engine``."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import (
    Field,
)
from pydantic.dataclasses import dataclass

from search.config.values import Count, NonNegative, Whole, strict


@dataclass(frozen=True, config=strict)
class InlineEngineConfig:
    """Steps run in the search's own process."""

    name: Literal["inline"]


# With less, a worker could hardly import PyTorch.
LEAST_WORKER_BYTES = 2**29


@dataclass(frozen=True, config=strict)
class LocalEngineConfig:
    """Steps run in worker processes of this machine."""

    name: Literal["local"]
    workers: Count
    threads: Count | None
    memory_limit_bytes: Annotated[Whole, Field(ge=LEAST_WORKER_BYTES)] | None


@dataclass(frozen=True, config=strict)
class RayEngineConfig:
    """Steps run on the nodes of a Ray cluster."""

    name: Literal["ray"]
    address: str | None
    workers: Count
    threads: Count
    gpus: NonNegative
    device_resource: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


EngineConfig = Annotated[
    InlineEngineConfig | LocalEngineConfig | RayEngineConfig, Field(discriminator="name")
]


def is_loopback(host: str) -> bool:
    """Tells whether only this machine reaches an address; names but ``localhost`` may be any."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
