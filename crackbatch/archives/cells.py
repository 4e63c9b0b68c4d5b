"""Reads the cells of a Parquet file's image column in a process of its own, with little memory.

A few kilobytes of Parquet can unpack to any size, and its reader is a large program in C++. So a file can end only this
process: the cells that it had not read by then have a status, and the run goes on. The process asks its parent for
each range of the file, and needs neither the storage nor its credentials.

    parent ── rows ─►  child        child ── range wanted ─► parent ── bytes ─► child        child ── cell ─► parent
"""

from __future__ import annotations

import io
import itertools
import json
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.archives.members import MAX_IMAGE_BYTES, Content, too_large
from crackbatch.archives.parquet import image_column, leaves_of
from crackbatch.machine import free_memory, limit_memory, live_as_child, receive, start_child
from crackbatch.storage.ranges import RangeFile

# What the child may take: more on machines that have more, since a cell of a gigabyte is copied a few times.
_LEAST_MEMORY, _MOST_MEMORY = 1 << 30, 4 << 30
_LIBRARIES = 512 << 20  # what Python and Arrow take
_MAX_CPU_S = 600
_SHOWN_PATH = 200  # bytes
_AT_ONCE, _AT_ONCE_BYTES = 32, 8 << 20
_MAX_RANGE = 64 << 20
_READ_AHEAD = 4 << 20
_HEAD = struct.Struct("<cQ")  # what follows, and its length
_RANGE = struct.Struct("<QQ")  # start and length
_WANTED, _CELL, _STATUS, _ERROR, _END = b"r", b"c", b"s", b"e", b"."


class UnreadableError(OSError):
    """The file cannot be read as Parquet."""


def read_cells(file: IO[bytes], size: int, rows: list[dict[str, Any]]) -> Iterator[Content]:
    """Yield the cell of each row from its row group; a row that its row group does not have is `corrupt`.

    `size` is the file's, in bytes. Raises UnreadableError for a damaged file, and the errors of reading the file. The
    rows that the process did not give before it died are `crashed`.
    """
    mine, its = socket.socketpair()
    memory = max(_LEAST_MEMORY, min(_MOST_MEMORY, free_memory() // 4))
    with mine, its:
        asked = {"socket": its.fileno(), "size": size, "memory": memory}
        child = start_child("crackbatch.archives.cells", asked, [its.fileno()])
        its.close()
        served = 0
        try:
            _send(mine, _STATUS, json.dumps([[row["start"], row["row_group"]] for row in rows]).encode())
            for content in _answers(mine, file, size):
                served += 1
                yield content
        except (EOFError, ConnectionError):
            pass
        finally:
            child.kill()
            child.wait()
    if served < len(rows):
        crashed = f"reading its row group crashed the process, or needs more than {memory / 1e9:.1f} GB of memory"
        yield from itertools.repeat(Content(None, "crashed", crashed), len(rows) - served)


def _answers(child: socket.socket, file: IO[bytes], size: int) -> Iterator[Content]:
    """Yield the cells that come, and give the ranges of the file that are asked for. Nothing here trusts the child."""
    while True:
        kind, length = _HEAD.unpack(receive(child, _HEAD.size))
        if length > MAX_IMAGE_BYTES:
            raise EOFError
        told = receive(child, length)
        if kind == _WANTED:
            start, wanted = _RANGE.unpack(told)
            file.seek(min(start, size))
            _send(child, _WANTED, file.read(min(wanted, _MAX_RANGE, size - min(start, size))))
        elif kind == _CELL:
            yield Content(bytes(told))
        elif kind == _STATUS:
            status, error = json.loads(told)
            yield Content(None, str(status), str(error))
        elif kind == _ERROR:
            raise UnreadableError(told.decode(errors="replace"))
        else:
            return


def _send(to: socket.socket, kind: bytes, data: Any) -> None:
    to.sendall(_HEAD.pack(kind, len(data)))
    to.sendall(data)


def serve() -> None:
    """Run the process. It is asked by socket, size and memory."""
    asked = live_as_child()
    limit_memory(_LIBRARIES + asked["memory"])
    with suppress(ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    with socket.socket(fileno=asked["socket"]) as parent, suppress(EOFError, ConnectionError):
        _, length = _HEAD.unpack(receive(parent, _HEAD.size))
        rows = json.loads(receive(parent, length))
        try:
            file = io.BufferedReader(RangeFile(partial(_ask_range, parent), asked["size"]), _READ_AHEAD)
            for cell in _cells(file, rows):
                if isinstance(cell, Content):
                    _send(parent, _STATUS, json.dumps([cell.status, cell.error]).encode())
                else:
                    _send(parent, _CELL, memoryview(cell))
            _send(parent, _END, b"")
        except (pa.ArrowException, OSError, ValueError) as error:
            if not isinstance(error, (ConnectionError, MemoryError)):
                _send(parent, _ERROR, (str(error).splitlines() or [type(error).__name__])[0].encode(errors="replace"))


def _ask_range(parent: socket.socket, start: int, stop: int) -> bytearray:
    """Return the bytes of a range of the file, at most as many as the parent gives at once."""
    _send(parent, _WANTED, _RANGE.pack(start, min(stop - start, _MAX_RANGE)))
    _, length = _HEAD.unpack(receive(parent, _HEAD.size))
    return receive(parent, length)


def _cells(file: IO[bytes], rows: list[list[int]]) -> Iterator[pa.Buffer | Content]:
    """Yield the bytes of each (row, row group), or its status."""
    whole = pq.ParquetFile(file)
    column = image_column(whole.schema_arrow)
    if column is None:
        raise UnreadableError("it has no image column any more")
    for group, members in itertools.groupby(rows, key=lambda row: row[1]):
        wanted = [start for start, _ in members]
        first = sum(whole.metadata.row_group(index).num_rows for index in range(group))
        served = 0
        leaf, at_once = _how_to_read(whole.metadata.row_group(group), column)
        parquet = pq.ParquetFile(file, metadata=whole.metadata, read_dictionary=leaf, buffer_size=_READ_AHEAD)
        for batch in parquet.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False):
            cells = batch.column(0)
            while served < len(wanted) and wanted[served] < first + len(cells):
                yield _cell(cells[wanted[served] - first])
                served += 1
            first += len(cells)
            if served == len(wanted):
                break
        for _ in wanted[served:]:
            yield Content(None, "corrupt", f"row group {group} has fewer rows than the footer of the file says")


def _how_to_read(group: pq.RowGroupMetaData, column: str) -> tuple[list[str], int]:
    """Return the leaves to keep as dictionaries, and the rows to read at once, fewer if they are large.

    A value that many rows share is in memory once then.
    """
    mine = leaves_of(group, column, "bytes")
    shared = [leaf.path_in_schema for leaf in mine if leaf.has_dictionary_page]
    mean = max((leaf.total_uncompressed_size // max(leaf.num_values, 1) for leaf in mine), default=0)
    return shared, max(1, min(_AT_ONCE, _AT_ONCE_BYTES // max(mean, 1)))


def _cell(scalar: pa.Scalar) -> pa.Buffer | Content:
    path = None
    if pa.types.is_struct(scalar.type):
        path = scalar["path"] if scalar.is_valid and "path" in scalar else None
        scalar = scalar["bytes"] if scalar.is_valid else pa.scalar(None, pa.binary())
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        where = f"; its path {_text(path)!r} points outside the Parquet file" if path and path.is_valid else ""
        return Content(None, "missing", f"the row has no bytes{where}")
    if len(scalar.as_buffer()) > MAX_IMAGE_BYTES:
        return Content(None, *too_large(len(scalar.as_buffer())))
    return scalar.as_buffer()


def _text(path: pa.Scalar) -> str:
    """Return a path for a message; it need not be UTF-8."""
    value = path.value if isinstance(path, pa.DictionaryScalar) else path
    return bytes(value.as_buffer())[:_SHOWN_PATH].decode(errors="replace") if hasattr(value, "as_buffer") else "?"
