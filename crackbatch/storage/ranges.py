"""Reading objects a part at a time: files to seek in, files from their beginning on, ranges of bytes.

A web server that sends the whole file where a range was asked for is refused: what came would be taken for the range.
"""

from __future__ import annotations

import io
import os
from typing import IO, Any

from crackbatch.storage import locations, objects
from crackbatch.storage.retry import retrying

_PIECE_BYTES = 4 << 20
_WHOLE_FILES_ONLY = "its server sends whole files only; download it and name the copy"


def open_file(location: str) -> IO[bytes]:
    """A file to read from; elsewhere in pieces of a few megabytes, each asked for again where that fails.

    One whose size nobody knows comes as `open_stream` opens it.
    """
    if locations.is_local(location):
        return open(locations.normalize(location), "rb")
    found, path = objects.filesystem(location)
    size = objects.info(location).get("size")
    if size is None:  # a server that does not say how long it is has no ranges either
        return retrying(lambda: open_stream(found, path))
    return io.BufferedReader(_Ranges(found, path, int(size)), _PIECE_BYTES)


def open_stream(found: Any, path: str) -> IO[bytes]:
    """A file that can only be read from its beginning on; asked for once.

    Seeking in it raises UnsupportedOperation. What fsspec's HTTP opens gives fewer bytes than are asked for, as many
    as have arrived; this waits for all of them.
    """
    with objects.told_apart(path):
        return _Stream(found.open(path, "rb", cache_type="none"), _PIECE_BYTES)


def read_range(found: Any, path: str, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of an object, fewer where it ends before; asked for once.

    Raises UnsupportedOperation where a web server sends whole files only, which would be taken for what was asked for.
    """
    if start >= stop:
        return b""
    if not locations.is_web(path):
        return bytes(found.cat_file(path, start=start, end=stop))
    try:  # the file and not `cat_file`, which reads whatever comes, all of it
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
    """A file without ranges."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        raise io.UnsupportedOperation(_WHOLE_FILES_ONLY)


class _Ranges(io.RawIOBase):
    """An object read by ranges; read ahead it is by the buffer around it."""

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
