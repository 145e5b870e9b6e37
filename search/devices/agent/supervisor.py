"""The agent's main process, which lets its children take turns."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .clocks import PROCESSOR, WALL
from .locks import (
    DEVICE_LOCK,
    LOOK_AROUND_S,
    QUEUE_LOCK,
    describe_holders,
    is_stopped,
    lock_until,
    open_lock,
)
from .messages import SCHEMA, Message, Refused, claim_stdout, follow, serve
from .options import SPINNING
from .processor import (
    count_usable_cores,
    describe_processor,
    place,
    read_disturbances,
    share_cpu,
    usable_cpus,
)
from .turns import share_time, turns

BEGIN_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from agent.child import main; main()"
CANDIDATE, REFERENCE = "candidate", "reference"
# How this program ends itself, and after how many looks in a row at a host that stands still.
EXPIRED, STOPPED_LOOKS = 3, 5
# Threads that may spin keep burning processor time for about 40 ms after a run; others stop at
# once, and a longer pause would only let the processor's clock and caches go cold.
SETTLE_S, SETTLE_SPINNING_S = 0.003, 0.040


class Child:
    """A fresh process that holds at most one model in its life.

    Args:
        role: Of its model.
        code: Folder that holds the package ``agent``.
    """

    def __init__(self, role: str, code: str) -> None:
        # numpy's linear algebra would start threads of its own, and count as the model's memory.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # onnxruntime's own reports of what it runs would leave the device, from a thread beside
        # the model's. Its function for that comes too late: the import starts them.
        environment["ORT_DISABLE_TELEMETRY"] = "1"
        self.role = role
        self.run_ms, self.clock = 0.0, WALL
        self.settle_s = SETTLE_S
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN_CHILD, code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
        )

    def ask(self, message: Message) -> Message:
        """Hands on a request; waits as long as it takes, for only the host can judge that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            status = self.process.wait()
            how = f"signal {-status}" if status < 0 else f"status {status}"
            reason = f"{self.role} process died with {how} in {message['request']!r}"
            raise Refused("Killed" if status == -signal.SIGKILL else "Died", reason)
        reply: Message = json.loads(line)
        if not reply.pop("ok"):
            raise Refused(reply["kind"], f"{self.role} model: {reply['error']}")
        return reply

    def stop(self) -> None:
        """Ends the process and waits for it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            # Closing flushes what a dead process can no longer read.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


class Supervisor:
    """Lets two children take turns; every method is the handler of one request.

    Args:
        code: Folder that holds the package ``agent``, for the children.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._children: dict[str, Child] = {}
        self._locks: list[int] = []
        self._ends = math.inf
        self._hold_s = math.inf
        self._last: Child | None = None

    def hello(self, _: Message) -> Message:
        """Tells the version of the messages, and who answers."""
        return {"schema": SCHEMA, "pid": os.getpid()}

    def conditions(self, _: Message) -> Message:
        """Tells under what conditions is measured."""
        stolen_ticks, throttled_us = read_disturbances()
        return {
            **describe_processor(), "stolen_ticks": stolen_ticks, "throttled_us": throttled_us
        }  # fmt: skip

    def lock(self, request: Message) -> Message:
        """Waits up to ``wait_s`` for the device, then keeps it until this program ends.

        It ends itself ``hold_s`` after the last request, and when the process that started it
        stands still: whoever asked may have gone without a word, and the next one waits.
        """
        if not self._locks:
            self._locks = [open_lock(QUEUE_LOCK), open_lock(DEVICE_LOCK)]
            threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()
        queue_lock, device_lock = self._locks
        # While waiting too: half of the device is held as soon as this is the first in the queue.
        self._hold_s = request["hold_s"]
        self._ends = time.monotonic() + request["wait_s"] + self._hold_s
        deadline = time.monotonic() + request["wait_s"]
        if not lock_until(queue_lock, deadline):
            written = os.pread(queue_lock, 200, 0).decode()
            return {"held": False, "holder": describe_holders(queue_lock) or written}
        with contextlib.suppress(OSError):  # another user's file is only readable
            os.ftruncate(queue_lock, 0)
            os.pwrite(queue_lock, f"process {os.getpid()}".encode(), 0)
        # Training that was stopped disturbs nobody, and what continues it has to pass the queue.
        if not lock_until(device_lock, deadline, do_without=is_stopped):
            who = describe_holders(device_lock)
            return {"held": False, "holder": f"training, {who}" if who else "training"}
        self.renew()
        return {"held": True, "holder": ""}

    def renew(self) -> None:
        """Notes that somebody still asks."""
        self._ends = time.monotonic() + self._hold_s

    def _watch(self, host: int) -> None:
        """Gives the device back where nobody will; runs in a thread."""
        looks = 0
        while looks < STOPPED_LOOKS and time.monotonic() < self._ends:
            time.sleep(LOOK_AROUND_S)
            looks = looks + 1 if is_stopped(host) else 0
        for child in tuple(self._children.values()):
            child.process.kill()
        os._exit(EXPIRED)

    def describe(self, _: Message) -> Message:
        """Tells what the device is."""
        child = Child("describe", self._code)
        try:
            versions = child.ask({"request": "versions"})
        finally:
            child.stop()
        return {**versions, **describe_processor(), "usable_cores": count_usable_cores()}

    def start(self, request: Message) -> Message:
        """Starts a fresh process for every role, replacing what was there; does not wait."""
        for role in request["roles"]:
            self._stop(role)
            self._children[role] = Child(role, self._code)
        return {}

    def open(self, request: Message) -> Message:
        """Opens a model in the role's process, started now if it was not."""
        role = request["role"]
        if role not in self._children:
            self._children[role] = Child(role, self._code)
        for started in self._children.values():
            started.ask({"request": "versions"})  # answers when it has imported all
        child = self._children[role]
        reply = child.ask(request)
        child.run_ms, child.clock = reply["run_ms"], reply["clock"]
        spins = request["threads"] > 1 and request["session_entries"].get(SPINNING, "0") != "0"
        child.settle_s = SETTLE_SPINNING_S if spins else SETTLE_S
        return reply

    def pass_on(self, request: Message) -> Message:
        """Hands a request to the role's process, when the other's threads have settled."""
        child = self._child(request["role"])
        if child is not self._last:
            time.sleep(max(other.settle_s for other in self._children.values()))
            self._last = child
        return child.ask(request)

    def rounds(self, request: Message) -> Message:
        """Times blocks of both models in turns, whole ABBA quadruples at a time, at least one."""
        children = (self._child(CANDIDATE), self._child(REFERENCE))
        order = turns(request["count"], request["seed"])
        shares = share_time([child.run_ms for child in children], request["block_ms"])
        clock = PROCESSOR if all(child.clock == PROCESSOR for child in children) else WALL
        self._last = None
        pids = [child.process.pid for child in children]
        if clock == PROCESSOR:
            share_cpu(pids)
        settle_s = max(child.settle_s for child in children)
        deadline = time.perf_counter() + request["limit_ms"] / 1e3
        times: tuple[list[float], list[float]] = ([], [])
        disturbances, disturbed = read_disturbances(), []
        last = None
        for turn, side in enumerate(order):
            if turn % 4 == 0 and turn > 0:
                before, disturbances = disturbances, read_disturbances()
                disturbed += 2 * [disturbances != before]
                if time.perf_counter() >= deadline:
                    break
            if side != last:
                time.sleep(settle_s)
            block = {
                "request": "block",
                "runs": shares.runs[side],
                "pieces": shares.pieces,
                "first": turn // 2 * shares.runs[side] * shares.pieces,
                "warm": shares.warm[side] if side != last else 0,
                "clock": clock,
            }
            times[side].append(children[side].ask(block)["ms"])
            last = side
        if len(disturbed) < len(times[0]):
            disturbed += 2 * [read_disturbances() != disturbances]
        if clock == PROCESSOR:
            place(pids, usable_cpus())
        return {
            "rounds": list(zip(*times, strict=True)),
            "disturbed": disturbed,
            "clock": clock,
            "pieces": shares.pieces,
            "runs": shares.runs,
            "order": "".join("AB"[side] for side in order[: 2 * len(times[0])]),
        }

    def close(self, _: Message) -> Message:
        """Ends all children."""
        for role in tuple(self._children):
            self._stop(role)
        return {}

    def kill_until_exit(self) -> None:
        """Frees the main thread from a child that never answers, so that the program can end."""
        while True:
            for child in tuple(self._children.values()):
                child.process.kill()
            time.sleep(0.05)

    def _child(self, role: str) -> Child:
        if role not in self._children:
            raise Refused("NotOpen", f"no {role} is open; open one first")
        return self._children[role]

    def _stop(self, role: str) -> None:
        if role in self._children:
            self._children.pop(role).stop()


def lead_group() -> None:
    """Makes this process the leader of its group, so that one kill ends it with its children."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def main() -> None:
    """Serves the host until it closes the pipe; no child outlives it."""
    if "--own-group" in sys.argv[1:]:
        lead_group()
    serve_host(Supervisor(unpacked(Path(sys.argv[0]).resolve())), claim_stdout())


def unpacked(archive: Path) -> str:
    """Returns the folder beside this program's archive that holds what is in it.

    Of files in a folder Python keeps what it compiled; those in an archive it would compile anew in
    every child.
    """
    folder = archive.with_suffix("")
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as aside:
            inside = Path(aside, "whole")
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    path = inside / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(packed.read(name))
            with contextlib.suppress(OSError):  # somebody else was quicker
                inside.rename(folder)
    return str(folder)


def serve_host(supervisor: Supervisor, out: TextIO) -> None:
    """Answers the host's requests until there are no more, and ends the children."""
    handlers = {
        "hello": supervisor.hello,
        "describe": supervisor.describe,
        "conditions": supervisor.conditions,
        "lock": supervisor.lock,
        "start": supervisor.start,
        "open": supervisor.open,
        "single": supervisor.pass_on,
        "throughput": supervisor.pass_on,
        "operators": supervisor.pass_on,
        "profile": supervisor.pass_on,
        "predict": supervisor.pass_on,
        "rounds": supervisor.rounds,
        "close": supervisor.close,
    }

    def lines() -> Iterator[str]:
        for line in follow(sys.stdin, supervisor.kill_until_exit):
            supervisor.renew()
            yield line

    serve(lines(), out, handlers)
    supervisor.close({})
