"""Opens a device, waits for it, and does work on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from search.config.device import (
    DeviceConfig,
    LocalDeviceConfig,
    PluginDeviceConfig,
    SshDeviceConfig,
)
from search.config.factory import call_factory
from search.devices.device import AgentExpired, AgentKilled, Device, LoginRefused
from search.devices.local import LocalTransport
from search.devices.transport import FAREWELL_S, HOLDS, SLOWEST_BYTES_PER_S, Transport
from search.errors import ConfigError, DeviceLost
from search.records.device import DeviceProfile

log = logging.getLogger(__name__)

T = TypeVar("T")
DESCRIBE_TIMEOUT_S = 60.0
QUEUE_POLL_S, LONG_WAIT_S = 5.0, 60.0
# Between two tries to connect again: the first pause, and the longest of those that follow.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 20.0
MOST_BREAKS = 3


def open_device(config: DeviceConfig, timeout_s: float) -> Device:
    """Returns the configured device, to be entered; its agent may take ``timeout_s`` to start.

    Raises:
        ConfigError: If it needs a package that is not installed, or a plug-in's cannot be made.
    """
    if isinstance(config, LocalDeviceConfig):
        return Device(LocalTransport(), timeout_s)
    if isinstance(config, PluginDeviceConfig):
        return Device(_plugin_transport(config), timeout_s)
    try:
        from search.devices.ssh import SshTransport
    except ModuleNotFoundError as error:
        if error.name != "asyncssh":
            raise
        reason = "device=ssh needs the package asyncssh: pip install 'cnn-search[ssh]'"
        raise ConfigError(reason) from error
    return Device(SshTransport(config, timeout_s), timeout_s)


def _plugin_transport(config: PluginDeviceConfig) -> Transport:
    transport = call_factory(config.factory, "device", config.arguments)
    if not isinstance(transport, Transport):
        raise ConfigError(
            f"device.factory={config.factory!r}: returned {type(transport).__name__}, which is no "
            "search.devices.transport.Transport; return one with all of its methods"
        )
    return transport


def hold(device: Device, timeout_s: float) -> None:
    """Waits until nobody else measures or trains on the device, and keeps it until it is left.

    Being busy is no failure: two studies queue instead of disturbing each other.

    Args:
        device: Entered.
        timeout_s: Seconds without a request after which the device frees itself, whatever became
            of this process.
    """
    begun, told, warned = time.monotonic(), False, False
    request = {"request": "lock", "wait_s": QUEUE_POLL_S, "hold_s": timeout_s + FAREWELL_S}
    while True:
        reply = device.ask(request, QUEUE_POLL_S + DESCRIBE_TIMEOUT_S)
        if reply["held"]:
            return
        if not told:
            log.info("the device is busy (%s there): waiting for it", reply["holder"])
            told = True
        elif not warned and time.monotonic() - begun > LONG_WAIT_S:
            log.warning(
                "the device has been busy for %d s (%s there); continue or end that process if it "
                "does nothing any more",
                LONG_WAIT_S,
                reply["holder"],
            )
            warned = True


def on_device(config: DeviceConfig, work: Callable[[Device], T], size_bytes: int = 0) -> T:
    """Does work on the device, which nobody else uses meanwhile.

    It is begun anew where the connection breaks, once where the agent is killed, and each time that
    this program was stopped for so long that the agent freed the device.

    Args:
        config: The device.
        work: Is called with the device, entered and held.
        size_bytes: Of the files that are brought to it.

    Raises:
        DeviceLost: If the device stays away for ``device.retry_s``, or the connection breaks again
            and again.
        SearchError: As the device or ``work`` raised it.
    """
    hold_s = HOLDS * config.timeout_s + size_bytes / SLOWEST_BYTES_PER_S
    retry_s = 0.0 if isinstance(config, LocalDeviceConfig) else config.retry_s
    patience = Patience(retry_s, has_admitted=config in _admitting)
    was_killed = False
    while True:
        try:
            with open_device(config, config.timeout_s) as device:
                hold(device, hold_s)
                patience.reached()
                if config not in _admitting:
                    _admitting.append(config)
                return work(device)
        except AgentExpired as error:
            log.warning("%s; measuring anew", error)
        except AgentKilled as error:
            if was_killed:
                raise
            was_killed = True
            log.warning("%s; trying again", error)
        except (DeviceLost, LoginRefused) as error:
            patience.wait(error)


# Devices that let this process in before: one that then refuses is about to restart, or has just.
# A list, because the arguments of a plug-in's have no hash.
_admitting: list[DeviceConfig] = []


class Patience:
    """How long a device that went away is waited for, counted anew whenever it was reached.

    Args:
        retry_s: Seconds without reaching it after which it is given up.
        has_admitted: Whether it let this program in before.
        clock: Seconds that only rise.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        retry_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        has_admitted: bool = False,
    ) -> None:
        self._retry_s, self._clock, self._sleep = retry_s, clock, sleep
        self._has_admitted = has_admitted
        self._pause_s = FIRST_PAUSE_S
        self._gone_since: float | None = None
        self._breaks = 0

    def reached(self) -> None:
        """Notes that the device is there."""
        self._gone_since, self._pause_s = None, FIRST_PAUSE_S

    def wait(self, error: DeviceLost | LoginRefused) -> None:
        """Waits before the next try, or raises ``error`` where there is none."""
        now = self._clock()
        if self._gone_since is None:
            self._gone_since = now
            self._breaks += 1
        # One that breaks each time it is asked for this work does so because of the work.
        tired = self._breaks > MOST_BREAKS or now - self._gone_since >= self._retry_s
        # Before it has let anybody in, a refusal says that it never will.
        is_first = now == self._gone_since and not self._has_admitted
        if tired or (is_first and isinstance(error, LoginRefused)):
            raise error
        log.warning("%s; trying again in %g s", error, self._pause_s)
        self._sleep(min(self._pause_s, self._gone_since + self._retry_s - now))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def describe_device(config: DeviceConfig) -> DeviceProfile:
    """Asks the device what it is.

    Raises:
        ConfigError: If it cannot be reached as configured.
        StageFailed: If its agent does not answer.
    """
    try:
        with open_device(config, DESCRIBE_TIMEOUT_S) as device:
            facts = device.ask({"request": "describe"}, DESCRIBE_TIMEOUT_S)
    except DeviceLost as error:  # before anything is begun the configuration is the suspect
        raise ConfigError(str(error)) from error
    return make_profile(device_name(config), facts)


def device_name(config: DeviceConfig) -> str:
    """Returns what the device is called in figures and messages."""
    return f"{config.host}:{config.port}" if isinstance(config, SshDeviceConfig) else config.name


def make_profile(name: str, facts: dict[str, Any]) -> DeviceProfile:
    """Draws the conclusions that stages need from an agent's description of its device."""
    flags = frozenset(facts["flags"])
    return DeviceProfile(
        name=name,
        cpu=facts["cpu"],
        arch=facts["arch"],
        flags=tuple(sorted(flags)),
        usable_cores=facts["usable_cores"],
        runtime=f"onnxruntime {facts['onnxruntime']}",
        # Channels beside a multiple of the vector's width cost time and compute nothing.
        round_to=16 if "avx512f" in flags else 8,
        int8_format=_int8_format(facts["arch"], flags),
    )


def _int8_format(arch: str, flags: frozenset[str]) -> Any:
    if arch.lower() not in ("x86_64", "amd64", "i386", "i686"):
        return "s8s8"
    # Without VNNI the sum of two u8*s8 products overflows 16 bits unless weights keep to 7 bits.
    return "u8s8" if flags & {"avx512_vnni", "avx_vnni"} else "u8s8_reduced"
