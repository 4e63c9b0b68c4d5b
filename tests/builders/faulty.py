"""A proxy that fails as stores do between a client and its store, and a file with a bad sector."""

from __future__ import annotations

import ctypes
import http.client
import mmap
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

EXPIRED = (
    b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)

DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>not for your eyes</Message></Error>"

FAULTS = ("500", "503", "429", "reset", "cut", "silence", "lost")


@dataclass
class Faults:
    """What the proxy does: fails a share of requests (of one method), refuses keys, lets nobody in after some."""

    share: float = 0.0
    method: str = ""
    kinds: tuple[str, ...] = FAULTS
    silence_s: float = 1.0
    delay_s: float = 0.0
    denied: str | None = None
    expires_after: int | None = None
    seed: int = 0
    made: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)


class FaultyProxy:
    """The store at `upstream` behind faults, on a free port of loopback while the block lasts."""

    def __init__(self, upstream: str, faults: Faults) -> None:
        self._random, self._lock = random.Random(faults.seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy._answer(self, urlsplit(upstream).netloc, faults)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, upstream: str, faults: Faults) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            faults.requests[f"{request.command} {request.path.partition('?')[0]}"] += 1
            fault = self._random.choice(faults.kinds) if self._random.random() < faults.share else ""
            fault = fault if request.command.startswith(faults.method) else ""
            expired = faults.expires_after is not None and faults.requests.total() > faults.expires_after
        if expired:
            return _send(request, 400, EXPIRED)
        if faults.denied and faults.denied in request.path and request.command in ("GET", "HEAD"):
            return _send(request, 403, DENIED)
        if fault and fault != "cut":
            with self._lock:
                faults.made[fault] += 1
        if faults.delay_s:
            threading.Event().wait(faults.delay_s)
        if fault in ("500", "503", "429"):
            return _send(request, int(fault), SLOW_DOWN if fault == "503" else b"")
        if fault == "reset":
            return _reset(request.connection)
        if fault == "silence":
            threading.Event().wait(faults.silence_s)
        connection = http.client.HTTPConnection(upstream, timeout=120)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "lost":  # the store has done it, and nobody learns of it
            return _reset(request.connection)
        cut = fault == "cut" and len(data) > 1
        if cut:
            with self._lock:
                faults.made[fault] += 1
        return _send(request, answer.status, data, answer.getheaders(), cut=cut)


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    data: bytes,
    headers: list[tuple[str, str]] | None = None,
    cut: bool = False,
) -> None:
    request.send_response_only(status)
    names = {"transfer-encoding", "connection", "content-length"}
    length = str(len(data))
    for name, value in headers or []:
        if name.lower() == "content-length" and request.command == "HEAD":
            length = value
        if name.lower() not in names:
            request.send_header(name, value)
    if not headers and data:
        request.send_header("Content-Type", "application/xml")
    request.send_header("Content-Length", length)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        request.wfile.flush()
        _reset(request.connection)


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a machine that goes away does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def bad_sector(before: bytes, behind: bytes, empty: Path) -> Iterator[tuple[str, int]]:
    """(file, where in it) of data around a page that cannot be read: an I/O error, as of a disk's bad sector.

    The file is this process's own memory, the page one of a mapped file behind that file's end.
    """
    size, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, 3 * size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    empty.touch()
    with empty.open("rb") as file:
        fixed = 0x10  # MAP_FIXED
        assert libc.mmap(address + size, size, mmap.PROT_READ, mmap.MAP_PRIVATE | fixed, file.fileno(), 0) == (
            address + size
        )
    try:
        ctypes.memmove(address, before.ljust(size, b"\0"), size)
        ctypes.memmove(address + 2 * size, behind.ljust(size, b"\0"), size)
        yield "/proc/self/mem", address
    finally:
        libc.munmap(address, 3 * size)
