"""What every way to a device promises."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from search.devices.device import Device
from search.devices.reaching import make_profile
from search.devices.transport import LAST_WORDS_BYTES, TooSlow, Transport
from search.errors import SearchError

Reach = Callable[[], Transport]
START_S, SOON_S = 60.0, 10.0
CONTENT = bytes(range(256)) * 1000
LONG = 1_000_000  # bytes of a line or of last words
# File names that a shell or a file system may take for something else.
NAMES = (
    "two words.py", "-c.py", "..py", "\u00fcber.py", "line\nbreak.py",
    "it's \"$(touch escaped)\".py", "program.$(touch escaped)", "program.py; touch escaped",
)  # fmt: skip
# A program leads its group itself where whoever starts it cannot see to it.
LEAD = "import json, os, sys\nif os.getpgrp() != os.getpid():\n    os.setsid()\n"
ECHO = "for line in sys.stdin:\n    print(line, end='', flush=True)\n"
LOOK = "print(os.path.exists('escaped'), flush=True)\n"
HASH = """import hashlib
for line in sys.stdin:
    print(hashlib.sha256(open(json.loads(line), 'rb').read()).hexdigest(), flush=True)
"""
HANG = """import subprocess, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(json.dumps([os.getpid(), child.pid]), flush=True)
time.sleep(600)
"""
FIND = """
def lives(pid):
    try:
        os.kill(pid, 0)
        stat = open(f'/proc/{pid}/stat').read() if os.path.isdir('/proc/self') else ') R'
    except OSError:
        return False
    return stat.rpartition(')')[2].split()[0] not in 'ZX'
for line in sys.stdin:
    print(json.dumps([pid for pid in json.loads(line) if lives(pid)]), flush=True)
"""
END = "print('goodbye', file=sys.stderr)\nsys.exit(7)\n"
FLOOD = f"""sys.stderr.write('x' * {LONG} + 'the end')
sys.stderr.flush()
for line in sys.stdin:
    print('there', flush=True)
"""


class TransportContract:
    """A suite for one way to a device.

    Fixture: ``reach``, a function that returns a new transport to the same device, not opened.
    """

    def test_a_file_arrives_whole(self, reach: Reach, tmp_path: Path) -> None:
        """Brought again it lies where it lay, and with another content it is another file."""
        path, other = tmp_path / "one.bin", tmp_path / "other.bin"
        path.write_bytes(CONTENT)
        other.write_bytes(CONTENT[::-1])
        with _opened(reach) as transport:
            there = transport.put(path)
            assert transport.put(path) == there != transport.put(other)
            assert _hash(transport, tmp_path, there) == hashlib.sha256(CONTENT).hexdigest()
            path.write_bytes(CONTENT[1:])
            again = _hash(transport, tmp_path, transport.put(path))
            assert again == hashlib.sha256(CONTENT[1:]).hexdigest()

    def test_names_are_nothing_but_names(self, reach: Reach, tmp_path: Path) -> None:
        """No part of a path is a command, or leads out of the folder."""
        with _opened(reach) as transport:
            for name in NAMES:
                path = tmp_path / name
                path.write_text(LEAD + LOOK + ECHO)
                with _started(transport, transport.put(path)):
                    assert transport.exchange(b"\n", START_S) == b"False\n", name

    def test_lines_are_answered_in_turn(self, reach: Reach, tmp_path: Path) -> None:
        """Whatever their length."""
        with _opened(reach) as transport, _running(transport, tmp_path, ECHO):
            for line in (b"one\n", b"\n", b"x" * LONG + b"\n", b'{"two": 2}\n'):
                assert transport.exchange(line, START_S) == line

    def test_answers_are_those_of_the_program_that_runs(self, reach: Reach, tmp_path: Path) -> None:
        """Not what one before it had said and nobody read."""
        with _opened(reach) as transport:
            with _running(transport, tmp_path, "print('old\\nolder', flush=True)\n" + ECHO):
                assert transport.exchange(b"\n", START_S) == b"old\n"
            with _running(transport, tmp_path, ECHO):
                assert transport.exchange(b"new\n", START_S) == b"new\n"

    def test_a_killed_program_ends_with_its_children(self, reach: Reach, tmp_path: Path) -> None:
        """Also one that answers nothing any more, which is told by then."""
        with _opened(reach) as transport:
            transport.start(_put(transport, tmp_path, HANG))
            pids = json.loads(transport.exchange(b"\n", START_S))
            assert _is_too_slow(transport)
            transport.kill(pids[0])
            with _running(transport, tmp_path, FIND):
                line, deadline = json.dumps(pids).encode() + b"\n", time.monotonic() + SOON_S
                while (left := json.loads(transport.exchange(line, START_S))) and (
                    time.monotonic() < deadline
                ):
                    time.sleep(0.05)  # a signal takes a moment
                assert left == []

    def test_how_a_program_ended_is_known(self, reach: Reach, tmp_path: Path) -> None:
        """By an answer without an end, its status, and what it said last."""
        with _opened(reach) as transport:
            group = transport.start(_put(transport, tmp_path, END))
            assert transport.exchange(b"hello\n", START_S) == b""
            assert transport.kill(group) in (7, None)
            assert transport.last_words().decode().strip() == "goodbye"

    def test_a_missing_program_is_named(self, reach: Reach, tmp_path: Path) -> None:
        """By an error, or by what Python says of it there."""
        with _opened(reach) as transport:
            try:
                group = transport.start("/nowhere/missing.py")
            except SearchError as error:
                said = str(error)
            else:
                assert transport.exchange(b"hello\n", START_S) == b""
                assert transport.kill(group) != 0
                said = transport.last_words().decode()
            assert "/nowhere/missing.py" in said

    def test_last_words_are_the_last(self, reach: Reach, tmp_path: Path) -> None:
        """However much a program says, it is not kept from answering."""
        with _opened(reach) as transport:
            with _running(transport, tmp_path, FLOOD):
                assert transport.exchange(b"\n", START_S) == b"there\n"
            words = transport.last_words()
            assert words.endswith(b"the end")
            assert len(words) <= LAST_WORDS_BYTES

    def test_closing_twice_does_no_harm(self, reach: Reach, tmp_path: Path) -> None:
        """Whoever gives a device up need not know how far it came."""
        transport = reach()
        transport.open()
        transport.close()
        transport.close()

    def test_the_agent_answers_there(self, reach: Reach) -> None:
        """And what it says of the device is enough to search for it."""
        with Device(reach(), START_S) as device:
            profile = make_profile("device", device.ask({"request": "describe"}, START_S))
        assert profile.usable_cores >= 1


@contextmanager
def _opened(reach: Reach) -> Iterator[Transport]:
    transport = reach()
    transport.open()
    try:
        yield transport
    finally:
        transport.close()


def _put(transport: Transport, folder: Path, program: str) -> str:
    path = folder / f"{hashlib.sha256(program.encode()).hexdigest()}.py"
    path.write_text(LEAD + program)
    return transport.put(path)


def _running(transport: Transport, folder: Path, program: str) -> AbstractContextManager[None]:
    return _started(transport, _put(transport, folder, program))


@contextmanager
def _started(transport: Transport, program: str) -> Iterator[None]:
    group = transport.start(program)
    try:
        yield
    finally:
        transport.kill(group)


def _hash(transport: Transport, folder: Path, path: str) -> str:
    """Returns the SHA-256 that a file has there."""
    with _running(transport, folder, HASH):
        return transport.exchange(json.dumps(path).encode() + b"\n", START_S).decode().strip()


def _is_too_slow(transport: Transport) -> bool:
    try:
        transport.exchange(b"\n", 0.2)
    except TooSlow:
        return True
    return False
