"""Types of ``conf/device``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from search.config.values import Arguments, Count, NonNegative, Positive, Whole, named, strict


@dataclass(frozen=True, config=strict)
class _MeasuringConfig:
    """How models are measured, whatever the device."""

    batch_size: Count
    throughput_batch_size: Count
    budget_s: Positive
    timeout_s: Positive
    spinning: bool
    memory_limit_bytes: Annotated[Whole, Field(gt=0)] | None
    canary_every: Count | None
    probe: bool

    @field_validator("timeout_s")
    @classmethod
    def _leave_time_to_measure(cls, timeout_s: float, others: ValidationInfo) -> float:
        budget_s = others.data.get("budget_s", 0.0)
        if timeout_s < 3 * budget_s:  # a second attempt may follow, and loading takes its time
            raise ValueError(f"input should be at least 3 times device.budget_s={budget_s:g}")
        return timeout_s


@dataclass(frozen=True, config=strict)
class LocalDeviceConfig(_MeasuringConfig):
    """This machine."""

    name: Literal["local"]


def _name_a_host(host: str) -> str:
    if not host or "@" in host or (":" in host and host.count(":") == 1):
        raise ValueError(
            "input should be a name or address; give device.user and device.port apart"
        )
    return host


@dataclass(frozen=True, config=strict)
class SshDeviceConfig(_MeasuringConfig):
    """Another machine, reached through its ssh server."""

    name: Literal["ssh"]
    host: Annotated[str, AfterValidator(_name_a_host)]
    port: Annotated[Whole, Field(ge=1, le=65535)]
    user: str | None
    key: str | None
    known_hosts: str
    python: str
    folder: str
    retry_s: NonNegative


@dataclass(frozen=True, config=strict)
class PluginDeviceConfig(_MeasuringConfig):
    """A machine that a plug-in reaches; ``factory`` names what returns its transport."""

    name: str
    retry_s: NonNegative
    factory: str
    arguments: Arguments


DeviceConfig = Annotated[
    Annotated[LocalDeviceConfig, Tag("local")]
    | Annotated[SshDeviceConfig, Tag("ssh")]
    | Annotated[PluginDeviceConfig, Tag("plug-in")],
    named("devices", "plug-in", "local", "ssh"),
]
