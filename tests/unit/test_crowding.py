"""How many threads train while others keep the cores busy, by a clock that only pretends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from search.networks.crowding import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    adapting,
    read_waited_s,
)


class Machine:
    """Seconds that pass, of which threads wait a share while others are busy."""

    def __init__(self) -> None:
        self.now_s = self.waited_s = 0.0
        self.share = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds
        self.waited_s += self.share * seconds


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_trains_while_others_keep_the_cores_busy() -> None:
    machine = Machine()
    with adapting(lambda: machine.now_s, lambda: machine.waited_s) as adapt:
        for share, threads in ((0.01, 2), (0.2, 2), (0.7, 1)):
            machine.share = share
            machine.pass_by(1.0)
            adapt()
            assert torch.get_num_threads() == threads
        machine.share = 0.0
        machine.pass_by(FIRST_PAUSE_S)
        adapt()
        assert torch.get_num_threads() == 2
        machine.share = 0.7
        machine.pass_by(0.5)
        adapt()  # too early to tell
        assert torch.get_num_threads() == 2
        machine.pass_by(0.5)
        adapt()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_where_it_stays_crowded_looks_become_rare() -> None:
    machine = Machine()
    machine.share = 1.0
    alone_s = 0.0
    with adapting(lambda: machine.now_s, lambda: machine.waited_s) as adapt:
        for _ in range(6000):
            machine.pass_by(0.1)
            adapt()
            alone_s += 0.1 * (torch.get_num_threads() == 1)
    assert alone_s > 600 * 0.95 - LONGEST_PAUSE_S / 2


def test_a_single_thread_is_left_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with adapting(waited_s=lambda: pytest.fail("it looked")) as adapt:
            adapt()
    finally:
        torch.set_num_threads(before)


def test_threads_that_wait_for_a_core_are_seen() -> None:
    code = """
import os, sys, threading, time
sys.path.insert(0, os.getcwd())
from search.networks.crowding import read_waited_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def work(until):
    while time.monotonic() < until:
        sum(range(1000))
if os.fork() == 0:  # on the same core
    work(time.monotonic() + 1)
    os._exit(0)
before = read_waited_s()
work(time.monotonic() + 0.8)
print(read_waited_s() - before)
"""
    begun = read_waited_s()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) > 0.1
    time.sleep(0.01)
    assert read_waited_s() >= begun
