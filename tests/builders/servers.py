"""Servers of files and storages, each with its own way to answer, and objects put into them."""

from __future__ import annotations

import functools
import io
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import fsspec

from builders.credentials import SIGNATURE


def release(holder: socket.socket) -> int:
    """The number of a port that was kept, free now for its server."""
    number = int(holder.getsockname()[1])
    holder.close()
    return number


@contextmanager
def server_process(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    """A server that runs while the block does, from when its port answers."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            deadline = time.monotonic() + 60
            while not answers(port):
                said.seek(0)
                assert process.poll() is None, said.read().decode()
                assert time.monotonic() < deadline, f"{command[0]} does not listen on {port}"
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine; waits a little where nobody does."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        threading.Event().wait(0.05)
        return False
    return True


def put(s3: str, key: str, data: bytes) -> None:
    """Put an object into the tests' bucket."""
    boto3.client("s3", endpoint_url=s3).put_object(Bucket="inspections", Key=key, Body=data)


def replaced(s3: str, key: str, data: bytes) -> None:
    put(s3, key, bytes(len(data)))


def grown(s3: str, key: str, data: bytes) -> None:
    put(s3, key, data + b"more")


def cut_short(s3: str, key: str, data: bytes) -> None:
    put(s3, key, data[:-100])


def deleted(s3: str, key: str, _: bytes) -> None:
    boto3.client("s3", endpoint_url=s3).delete_object(Bucket="inspections", Key=key)


class WholeFiles(SimpleHTTPRequestHandler):
    """Python's own server of files, which takes no notice of the ranges it is asked for."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(WholeFiles):
    """A server that gives what it is asked for."""

    def send_head(self) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return super().send_head()
        part = Path(self.translate_path(self.path)).read_bytes()[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


class InPieces(WholeFiles):
    """A server that makes its answers while it sends them, so that it does not say how long they are."""

    protocol_version = "HTTP/1.1"

    def send_header(self, name: str, value: str) -> None:
        super().send_header(*(("Transfer-Encoding", "chunked") if name == "Content-Length" else (name, value)))

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
        while piece := source.read(50_000):
            outputfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            outputfile.flush()
        outputfile.write(b"0\r\n\r\n")


class Packed(WholeFiles):
    """A server that packs what it sends, asked or not."""

    def end_headers(self) -> None:
        self.send_header("Content-Encoding", "gzip")
        super().end_headers()


class Endless(WholeFiles):
    """A server that answers each request for a range with bytes without end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(ConnectionError):
            while True:
                self.wfile.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")


class ByQuery(WholeFiles):
    """A server whose images differ in a parameter of their URL, and that knows a signed URL by its password."""

    def send_head(self) -> Any:
        query = parse_qs(urlsplit(self.path).query)
        if "code" not in query or query.get("sig") != [unquote(SIGNATURE)]:
            self.send_error(403)
            return None
        self.path = f"/{query['code'][0]}.jpg"
        return super().send_head()


def refusing(path: str, status: int, at_first: int, server: type[SimpleHTTPRequestHandler] = WholeFiles) -> Any:
    """A server that answers the next requests for one path with a status."""

    class Handler(server):  # type: ignore[misc,valid-type]
        times = at_first

        def send_head(self) -> Any:
            if self.path == path and Handler.times:
                Handler.times -= 1
                self.send_response(status)
                SimpleHTTPRequestHandler.send_header(self, "Content-Length", "0")
                self.end_headers()
                return None
            return super().send_head()

    return Handler


@contextmanager
def serving(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of a folder, while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Place(NamedTuple):
    """A bucket that holds images as a folder `lot`, as `lot.zip`, and a model bundle as `model`."""

    url: str
    filesystem: fsspec.AbstractFileSystem
