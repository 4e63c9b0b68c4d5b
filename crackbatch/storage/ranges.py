"""Read objects in pieces: as seekable files, as streams, or as ranges of bytes.

Some web servers ignore a range request and send the whole file. This is an error: the start of the file would be taken
for the range.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from typing import IO, Any

import fsspec.asyn

from crackbatch.storage import locations, objects
from crackbatch.storage.retry import retrying

_PIECE_BYTES = 4 << 20
_NOT_FOLLOWED = "the server redirects to another address, which is not followed (--only-below)"
_REDIRECTS = range(300, 400)
_RANGE_GIVEN = re.compile(r"bytes (\d+)-")  # RFC 9110, 14.4
_WHOLE_FILES_ONLY = "the server sends whole files only, not ranges; download the file and give the path of the copy"


def open_file(location: str) -> IO[bytes]:
    """Open a file for reading. A remote file is read in pieces of a few megabytes; a failed piece is retried.

    A remote file of unknown size is opened with `open_stream`.
    """
    if locations.is_local(location):
        return open(locations.normalize(location), "rb")
    found, path = objects.filesystem(location)
    size = objects.info(location).get("size")
    if size is None:  # a server that gives no size supports no ranges either
        return retrying(lambda: open_stream(found, path))

    def read(start: int, stop: int) -> bytes:
        return retrying(lambda: read_range(found, path, start, stop))

    return io.BufferedReader(RangeFile(read, int(size)), _PIECE_BYTES)


def open_stream(found: Any, path: str) -> IO[bytes]:
    """Open a file that can only be read from start to end; does not retry.

    Seeking in it raises UnsupportedOperation. A file from fsspec's HTTP may return only the bytes that have arrived;
    this one waits for all that were requested.
    """
    with objects.told_apart(path):
        file = found.open(path, "rb", cache_type="none")
    if getattr(getattr(file, "r", None), "status", 200) in _REDIRECTS:  # a file from fsspec's HTTP
        raise OSError(_NOT_FOLLOWED)
    return _Stream(file, _PIECE_BYTES)


def read_range(found: Any, path: str, start: int, stop: int) -> bytes:
    """Read the bytes from `start` to `stop` of an object, fewer if it ends before; does not retry.

    Raises UnsupportedOperation if a web server sends whole files only.
    """
    if start >= stop:
        return b""
    if not locations.is_web(path):
        return bytes(found.cat_file(path, start=start, end=stop))
    return bytes(fsspec.asyn.sync(found.loop, _web_range, found, path, start, stop))


async def _web_range(found: Any, path: str, start: int, stop: int) -> bytes:
    """Read a range from a web server, and no byte more: fsspec reads all that the server sends."""
    options = {**found.kwargs, "headers": {**found.kwargs.get("headers", {}), "Range": f"bytes={start}-{stop - 1}"}}
    session = await found.set_session()
    async with session.get(found.encode_url(path), **options) as answer:
        if answer.status == 416:  # the file ends before
            return b""
        if answer.status in locations.GONE:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        if answer.status in _REDIRECTS:
            raise OSError(_NOT_FOLLOWED)
        given = _RANGE_GIVEN.match(answer.headers.get("Content-Range", "")) if answer.status == 206 else None
        if start != (int(given[1]) if given else start if answer.status == 206 else 0):
            raise io.UnsupportedOperation(_WHOLE_FILES_ONLY)
        data = bytearray()
        while len(data) < stop - start and (piece := await answer.content.read(stop - start - len(data))):
            data += piece
        return bytes(data)


def read_whole(location: str, limit: int) -> bytes:
    """Read a whole object; raises FileNotFoundError or another error of the storage.

    A web server needs no ranges for it, and no more than one byte beyond the limit is taken from it.
    """
    if locations.is_local(location):
        with open_file(location) as file:
            return read_at_most(file, limit)
    found, path = objects.filesystem(location)
    if not locations.is_web(location):
        return retrying(lambda: bytes(found.cat_file(path)))

    def read() -> bytes:
        with objects.told_apart(path), found.open(path, "rb", block_size=0) as file:
            return read_at_most(io.BufferedReader(file, _PIECE_BYTES), limit)

    return retrying(read)


def read_at_most(file: IO[bytes], limit: int) -> bytes:
    """Read a file to its end, or one byte more than the limit; takes memory only for what is there."""
    pieces, left = [], limit + 1
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


class _Stream(io.BufferedReader):
    """A file that cannot seek."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        raise io.UnsupportedOperation(_WHOLE_FILES_ONLY)


class RangeFile(io.RawIOBase):
    """A file of which `read` gives the bytes from a start to a stop. The buffer around it reads ahead."""

    def __init__(self, read: Callable[[int, int], bytes | bytearray], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, stop = self._at, min(self._at + len(buffer), self._size)
        if start >= stop:
            return 0
        data = self._read(start, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
