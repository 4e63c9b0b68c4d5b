"""Read objects in pieces: as seekable files, as streams, or as ranges of bytes.

Some web servers ignore a range request and send the whole file. This is an error: the start of the file would be taken
for the range.
"""

from __future__ import annotations

import io
import os
from typing import IO, Any

from crackbatch.storage import locations, objects
from crackbatch.storage.retry import retrying

_PIECE_BYTES = 4 << 20
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
    return io.BufferedReader(_Ranges(found, path, int(size)), _PIECE_BYTES)


def open_stream(found: Any, path: str) -> IO[bytes]:
    """Open a file that can only be read from start to end; does not retry.

    Seeking in it raises UnsupportedOperation. A file from fsspec's HTTP may return only the bytes that have arrived;
    this one waits for all that were requested.
    """
    with objects.told_apart(path):
        return _Stream(found.open(path, "rb", cache_type="none"), _PIECE_BYTES)


def read_range(found: Any, path: str, start: int, stop: int) -> bytes:
    """Read the bytes from `start` to `stop` of an object, fewer if it ends before; does not retry.

    Raises UnsupportedOperation if a web server sends whole files only.
    """
    if start >= stop:
        return b""
    if not locations.is_web(path):
        return bytes(found.cat_file(path, start=start, end=stop))
    try:  # not `cat_file`: it reads everything that the server sends
        with found.open(path, "rb", size=stop, cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(stop - start))
    except ValueError:
        raise io.UnsupportedOperation(_WHOLE_FILES_ONLY) from None
    except Exception as error:
        if getattr(error, "status", None) in locations.GONE:
            raise FileNotFoundError(path) from None
        raise


class _Stream(io.BufferedReader):
    """A file that cannot seek."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        raise io.UnsupportedOperation(_WHOLE_FILES_ONLY)


class _Ranges(io.RawIOBase):
    """An object read by ranges. The buffer around it reads ahead."""

    def __init__(self, found: Any, path: str, size: int) -> None:
        self._found, self._path, self._size = found, path, size
        self._at = 0

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
        data = retrying(lambda: read_range(self._found, self._path, start, stop))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
