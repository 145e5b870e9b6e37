"""A real ssh server on loopback that runs real processes, for tests of devices behind one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from search.config.device import SshDeviceConfig

T = TypeVar("T")


class Server:
    """An ssh server with one account, whose home is a folder; ends with all that it runs."""

    def __init__(self, home: Path, host_key: asyncssh.SSHKey, user_key: asyncssh.SSHKey) -> None:
        self.uploads: list[str] = []
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.home = home
        self.host_key = host_key
        self._user_key = user_key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Server:
        self._thread.start()
        self._listener = self.call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        return self._listener.get_port()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30.0)

    def cut(self, how: str) -> None:
        """Ends every connection, by ``abort`` without a word or by ``close`` with one."""

        async def end() -> None:
            for connection in self.connections:
                getattr(connection, how)()

        self.call(end())

    def restart(self, away_s: float) -> None:
        """Cuts every connection and listens no more for a while, as a machine that restarts."""
        port = self.port
        self._listener.close()
        self.cut("abort")

        def come_back() -> None:
            self._listener = self.call(self._listen(port))

        threading.Timer(away_s, come_back).start()

    async def _listen(self, port: int = 0) -> asyncssh.SSHAcceptor:
        server = self
        allowed = asyncssh.import_authorized_keys(
            self._user_key.export_public_key("openssh").decode()
        )

        class Account(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                server.connections.append(conn)

        class Files(asyncssh.SFTPServer):
            def map_path(self, path: bytes) -> bytes:
                return os.path.join(os.fsencode(server.home), path)  # noqa: PTH118 - bytes

            def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
                if pflags & asyncssh.FXF_WRITE:
                    server.uploads.append(os.fsdecode(path))
                return super().open(path, pflags, attrs)

        return await asyncssh.listen(
            "127.0.0.1",
            port,
            server_factory=Account,
            server_host_keys=[self.host_key],
            authorized_client_keys=allowed,
            process_factory=self._run,
            sftp_factory=Files,
            encoding=None,
        )

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Runs a command as sshd does: when the connection ends, the pipes are closed."""
        assert process.command is not None
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env={**os.environ, "HOME": str(self.home)},
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feed = asyncio.create_task(pump(process.stdin, child.stdin))
        into = child.stdin
        feed.add_done_callback(lambda _: into.close())
        await asyncio.gather(
            pump_all(child.stdout, process.stdout),
            pump_all(child.stderr, process.stderr),
            child.wait(),
        )
        feed.cancel()
        await asyncio.wait([feed])
        status = child.returncode or 0
        with contextlib.suppress(OSError):  # the connection is gone
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)

    async def _end(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.abort()
        await self._listener.wait_closed()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        if others:
            await asyncio.wait(others, timeout=10.0)


async def pump_all(source: asyncio.StreamReader, sink: Any) -> None:
    """Copies to the end, and reads on when the connection breaks: who writes must not block."""
    await pump(source, sink)
    while await source.read(1 << 16):
        pass


async def pump(source: Any, sink: Any) -> None:
    """Copies until the source ends or the connection breaks."""
    with contextlib.suppress(asyncssh.Error, OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


def list_key(folder: Path, port: int, key: asyncssh.SSHKey) -> None:
    """Writes the ``known_hosts`` of somebody who trusts the server."""
    line = f"[127.0.0.1]:{port} {key.export_public_key('openssh').decode()}"
    (folder / "known_hosts").write_text(line)


def make_config(folder: Path, port: int, host: asyncssh.SSHKey, user: str) -> SshDeviceConfig:
    """Returns the configuration of somebody who trusts the server, and whose key is ``key``.

    Args:
        folder: With the private key; gets ``known_hosts``.
        port: Of the server.
        host: The server's key.
        user: Who logs in.
    """
    list_key(folder, port, host)
    return SshDeviceConfig(
        batch_size=1,
        throughput_batch_size=1,
        budget_s=1.0,
        timeout_s=60.0,
        spinning=False,
        memory_limit_bytes=None,
        canary_every=1,
        probe=False,
        name="ssh",
        host="127.0.0.1",
        port=port,
        user=user,
        key=str(folder / "key"),
        known_hosts=str(folder / "known_hosts"),
        python=sys.executable,
        folder="models/kept here",
        retry_s=0.0,
    )
