"""What becomes of a time-out while this program stands still, as after Ctrl-Z."""

from __future__ import annotations

import asyncio
import time

import pytest

from search.devices.ssh import STOOD_STILL_S, _within
from search.devices.transport import TooSlow

TIMEOUT_S = 0.2


async def answer(after_s: float) -> str:
    await asyncio.sleep(after_s)
    return "answer"


def wait_for(after_s: float, stopped_s: float = 0.0) -> str:
    """Waits for an answer; meanwhile the loop stands still for a while."""

    async def wait() -> str:
        if stopped_s:
            asyncio.get_running_loop().call_later(0.01, time.sleep, stopped_s)
        return await _within(TIMEOUT_S, answer(after_s))

    return asyncio.run(wait())


def test_an_answer_in_time_is_taken() -> None:
    assert wait_for(0.01) == "answer"


def test_without_one_the_work_is_given_up() -> None:
    with pytest.raises(TooSlow):
        wait_for(60.0)


def test_an_answer_that_came_while_this_program_stood_still_is_taken() -> None:
    assert wait_for(0.05, stopped_s=STOOD_STILL_S + 0.5) == "answer"


def test_time_counts_anew_after_a_stop_but_not_for_ever() -> None:
    begun = time.monotonic()
    with pytest.raises(TooSlow):
        wait_for(60.0, stopped_s=STOOD_STILL_S + 0.5)
    assert time.monotonic() - begun < 30.0


def test_work_that_is_given_up_cleans_up_first() -> None:
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            await asyncio.sleep(0.05)
            ends.append("cleaned up")

    async def wait() -> None:
        with pytest.raises(TooSlow):
            await _within(0.05, work())
        assert ends == ["cleaned up"]

    asyncio.run(wait())


def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        asyncio.run(_within(60.0, work()))
