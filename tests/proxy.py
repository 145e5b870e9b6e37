"""Stands before a server and does to its answers what a bad day does."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

# "lost" does what it was asked to and never says so.
Mood = Literal["fine", "down", "failing", "slow", "lost"]
SLOW_S = 2.0
KEPT_HEADERS = ("Content-Type", "Content-Length")


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to a server; ``mood`` says how, given path and how often that came."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.mood: Callable[[str, int], Mood] = lambda path, count: "fine"
        self.asked: Counter[str] = Counter()
        self.moods: Counter[Mood] = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def choose(self, path: str) -> Mood:
        """Returns how the next request to ``path`` is answered."""
        name = path.partition("?")[0]
        self.asked[name] += 1
        mood = self.mood(name, self.asked[name])
        self.moods[mood] += 1
        return mood

    def handle_error(self, *_: object) -> None:
        """Says nothing: clients that go away are what is tested."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - inherited name
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mood = self.server.choose(self.path)
        if mood == "slow":
            time.sleep(SLOW_S)
        if mood == "down":
            self.close_connection = True
            return
        status, kind, content = 500, "text/plain", b"out of order"
        if mood != "failing":
            status, kind, content = self._pass_on(body)
        if mood == "lost":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _pass_on(self, body: bytes) -> tuple[int, str, bytes]:
        """Returns status, type and content of the server's answer."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        kept = {name: self.headers[name] for name in KEPT_HEADERS if name in self.headers}
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers.get("Content-Type", "application/json"), content

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - inherited names


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """Runs a proxy before a server."""
    with Proxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
