"""How long a device that went away is waited for, by a clock that only pretends."""

from __future__ import annotations

import pytest

from search.devices.device import LoginRefused
from search.devices.reaching import MOST_BREAKS, Patience
from search.errors import ConfigError, DeviceLost
from tests.unit.benchmark.test_protocol import FakeClock

LOST, REFUSED = DeviceLost("no answer"), LoginRefused("no entry")


class Waits:
    """A clock that waiting moves on."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.pauses_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.clock.now_s += seconds

    def patience(self, retry_s: float, has_admitted: bool = False) -> Patience:
        return Patience(retry_s, self.clock, self.sleep, has_admitted)


def test_a_device_is_given_up_when_its_time_is_over() -> None:
    waits = Waits()
    patience = waits.patience(60.0)

    def wait_for_ever() -> None:
        while True:
            patience.wait(LOST)

    with pytest.raises(DeviceLost):
        wait_for_ever()
    assert waits.pauses_s[:4] == [1.0, 2.0, 4.0, 8.0]
    assert sum(waits.pauses_s) == pytest.approx(60.0)


def test_time_counts_anew_after_each_success() -> None:
    waits = Waits()
    patience = waits.patience(10.0)
    for _ in range(MOST_BREAKS):
        patience.wait(LOST)
        patience.wait(LOST)
        patience.wait(LOST)
        patience.reached()
    assert waits.pauses_s == [1.0, 2.0, 4.0] * MOST_BREAKS
    # Work that breaks the device each time is given up in the end.
    with pytest.raises(DeviceLost):
        patience.wait(LOST)


def test_no_patience_is_none() -> None:
    waits = Waits()
    with pytest.raises(DeviceLost):
        waits.patience(0.0).wait(LOST)
    assert waits.pauses_s == []


def test_a_refusal_is_waited_for_only_while_the_device_comes_back() -> None:
    waits = Waits()
    with pytest.raises(ConfigError):
        waits.patience(60.0).wait(REFUSED)
    patience = waits.patience(60.0)
    patience.wait(LOST)
    patience.wait(REFUSED)
    assert waits.pauses_s == [1.0, 2.0]
    # One that let this program in before is about to restart.
    waits.patience(60.0, has_admitted=True).wait(REFUSED)
    assert waits.pauses_s == [1.0, 2.0, 1.0]
