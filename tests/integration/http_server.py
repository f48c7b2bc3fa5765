"""A real HTTP server on loopback that misbehaves on demand.

    with MisbehavingServer() as server:
        server.on("/a.pdf", answer(b"whole"))
        server.on("/b.pdf", answer(status=503, headers={"Retry-After": "7"}), answer(b"at the second request"))
        server.url("/a.pdf"), server.hits["/a.pdf"], server.connections

A route has one behaviour a request; the last one serves all further requests. A behaviour writes what it likes to the
connection. What stalls does so until the server stops, and no longer.
"""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

MAX_STALL_S = 30.0

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One connection; `setup` is called once for each, `do_GET` once for each request on it."""

    protocol_version = "HTTP/1.1"
    timeout = MAX_STALL_S
    disable_nagle_algorithm = True  # headers and body are written apart: each answer would wait 40 ms
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        with self.server.owner.lock:
            self.server.owner.connections += 1

    def do_GET(self) -> None:
        self.server.owner.behaviour(self.path, dict(self.headers.items()))(self)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

    def stall(self) -> None:
        """Say nothing more, but keep the connection open until the server stops."""
        self.wfile.flush()
        self.server.owner.stopping.wait(MAX_STALL_S)
        self.close_connection = True

    def cut(self) -> None:
        """End the connection as a crash does: with a reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: "MisbehavingServer"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many of the tests are about."""


class MisbehavingServer:
    """Serves the routes given to `on`; counts connections and hits, and keeps the headers of the last request."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.connections = 0
        self.hits: Counter[str] = Counter()
        self.last_headers: dict[str, str] = {}
        self._routes: dict[str, list[Behaviour]] = {}
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def on(self, path: str, *behaviours: Behaviour) -> str:
        """Set what the requests of a path meet, one after the other, and return its URL."""
        with self.lock:
            self._routes[path] = list(behaviours)
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def behaviour(self, path: str, headers: dict[str, str]) -> Behaviour:
        with self.lock:
            self.hits[path] += 1
            self.last_headers = headers
            left = self._routes.get(path.partition("?")[0]) or [answer(status=404)]
            return left.pop(0) if len(left) > 1 else left[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(MAX_STALL_S)


def answer(
    body: bytes = b"",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    length: int | None = -1,
    then: Callable[[Handler], None] = lambda handler: None,
) -> Behaviour:
    """Send a status, headers and a body, then do what `then` says.

    Args:
        length: the Content-Length to announce. -1: the true one. None: none; the body ends with the connection.
    """

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if length is None:
            handler.send_header("Connection", "close")
        else:
            handler.send_header("Content-Length", str(len(body) if length == -1 else length))
        handler.end_headers()
        handler.wfile.write(body)
        then(handler)

    return behave


def drip(status: int, told: Callable[[str], None]) -> Behaviour:
    """Send a long body byte by byte, as long as somebody reads, and tell how that ended."""

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.close_connection = True
        until = time.monotonic() + MAX_STALL_S / 2
        try:
            while time.monotonic() < until and not handler.server.owner.stopping.wait(0.02):
                handler.wfile.write(b"x")
        except OSError:
            told("hung up")
        else:
            told("went on reading")

    return behave


def redirect(location: str, status: int = 302) -> Behaviour:
    """Send the client elsewhere."""
    return answer(b"moved", status=status, headers={"Location": location})


def chunked(*chunks: bytes, is_whole: bool = True) -> Behaviour:
    """Send a body in chunks, without a length; `is_whole=False` leaves out the end and hangs up."""

    def behave(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n" if is_whole else b"")
        handler.close_connection = not is_whole

    return behave


def endless(handler: Handler) -> None:
    """Send a body that never ends, without a length, until the client hangs up or the server stops."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while not handler.server.owner.stopping.is_set():
        handler.wfile.write(b"x" * 65536)


def hang_up(handler: Handler) -> None:
    """Close the connection instead of answering."""
    handler.close_connection = True


def silence(handler: Handler) -> None:
    """Take the request and never answer."""
    handler.stall()


def babble(handler: Handler) -> None:
    """Answer with something that is not HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True
