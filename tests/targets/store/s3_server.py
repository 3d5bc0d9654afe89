"""A real S3 server process on this machine, and a proxy before it that fails on demand."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "targets"

Fault = Callable[["Relay", bytes, dict[str, str]], bool]
"""Gets the handler of a request, the real answer's body and headers; whether it answered in its own way."""


def environment(endpoint: str) -> dict[str, str]:
    """Variables that lead S3 clients to an endpoint on this machine."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def running_server() -> Iterator[str]:
    """Start moto's server in a process of its own with one bucket; yields its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ.copy())
    # The server logs each request; a full pipe would stop it.
    log: deque[bytes] = deque(maxlen=50)
    threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=10)
                break
            except (urllib.error.URLError, ConnectionError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the S3 server did not start: {b''.join(log).decode()}") from error
                time.sleep(0.05)
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=30)


class Proxy:
    """Relays requests to a server, unless a fault is planned for them.

    Attributes:
        endpoint: where it listens.
        requests: method and path of every request so far.
        planned: faults of the next requests; each is used once, None lets a request pass.
        always: fault of every request without a planned one, None for none.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.requests: list[tuple[str, str]] = []
        self.planned: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
        self.server.daemon_threads = True
        self.server.proxy = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


class Relay(BaseHTTPRequestHandler):
    """Handles one connection of the proxy."""

    protocol_version = "HTTP/1.1"

    def relay(self) -> None:
        """Pass a request on and its answer back, or a fault."""
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        proxy.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.planned.popleft() if proxy.planned else proxy.always
        if fault in (server_error, dropped):
            # The server never hears of these.
            fault(self, b"", {})
            return
        connection = http.client.HTTPConnection(proxy.target, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")}
        connection.close()
        if fault is not None and fault(self, content, headers):
            return
        self.answer(answer.status, headers, content)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        if self.command != "HEAD" and "content-length" not in {name.lower() for name in headers}:
            headers = {**headers, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

    def handle(self) -> None:
        """As usual; clients that give up are part of the plan."""
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def server_error(relay: Relay, _content: bytes, _headers: dict[str, str]) -> bool:
    """Answer 500 without asking the server."""
    relay.answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
    return True


def dropped(relay: Relay, _content: bytes, _headers: dict[str, str]) -> bool:
    """Close the connection without an answer."""
    relay.close_connection = True
    relay.connection.shutdown(socket.SHUT_RDWR)
    return True


def cut_off(relay: Relay, content: bytes, headers: dict[str, str]) -> bool:
    """Close the connection after half of the body."""
    relay.answer(200, {**headers, "Content-Length": str(len(content))}, content[: len(content) // 2])
    relay.wfile.flush()
    relay.close_connection = True
    relay.connection.shutdown(socket.SHUT_RDWR)
    return True


def shortened(relay: Relay, content: bytes, headers: dict[str, str]) -> bool:
    """Send half of the body as if it were all: no client can tell from the answer."""
    others = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    relay.answer(200, others, content[: len(content) // 2])
    return True


def garbled(relay: Relay, content: bytes, headers: dict[str, str]) -> bool:
    """Flip a bit in every tenth byte."""
    relay.answer(200, headers, bytes(byte ^ 4 if row % 10 == 0 else byte for row, byte in enumerate(content)))
    return True


def stalled(relay: Relay, content: bytes, headers: dict[str, str]) -> bool:
    """Send half of the body, then nothing for longer than a client should wait."""
    relay.answer(200, {**headers, "Content-Length": str(len(content))}, content[: len(content) // 2])
    relay.wfile.flush()
    time.sleep(3.0)
    relay.close_connection = True
    return True


def silent(relay: Relay, _content: bytes, _headers: dict[str, str]) -> bool:
    """Never answer, in a client's eyes."""
    time.sleep(3.0)
    relay.close_connection = True
    return True


def slow(relay: Relay, _content: bytes, _headers: dict[str, str]) -> bool:
    """Answer rightly, but late."""
    time.sleep(0.3)
    return False
