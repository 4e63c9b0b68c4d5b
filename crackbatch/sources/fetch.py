"""Reads the encoded bytes of planned rows in merged ranges, and checks each against the plan.

`fetch` never raises an exception for one image: an image that cannot be read gets a status and the storage's message.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from crackbatch.archives.cells import UnreadableError, read_cells
from crackbatch.archives.members import MAX_BLOCK_BYTES, MAX_IMAGE_BYTES, Content
from crackbatch.archives.zips import unzip
from crackbatch.errors import RunError
from crackbatch.sources.rows import CARRIED
from crackbatch.sources.rows import SCHEMA as PLAN_SCHEMA
from crackbatch.storage import locations, objects, ranges
from crackbatch.storage.redaction import masked, reason_of
from crackbatch.storage.retry import retrying

# Reading a gap of up to this size between two ranges costs less than a second request.
_MAX_GAP = 64 << 10
_MAX_MERGED = 8 << 20
_REMOTE_READS = 16
_MAX_AHEAD = 32 << 20  # bytes of an object of unknown size that is read beside others

# The columns of the plan that scoring needs. Once the bytes are read, their place is not needed any more.
_KEPT = ("image_uri", "archive", "version", "size_bytes", "status", "error")


_Span = tuple[int, int, list[int]]  # start, stop, and the numbers of its rows


def fetch(shard: pa.Table) -> Iterator[pa.Table]:
    """Yield tables of about 32 MB with the shard's rows in order and a column `bytes`, null if it cannot be read."""
    rows, contents, held = [], [], 0
    for row, content in _contents(shard):
        rows.append(row)
        contents.append(content)
        held += len(content.data or b"")
        if held >= MAX_BLOCK_BYTES:
            yield _block(shard, rows, contents)
            rows, contents, held = [], [], 0
    if rows:
        yield _block(shard, rows, contents)


def _block(shard: pa.Table, rows: list[int], contents: list[Content]) -> pa.Table:
    carried = [name for name in shard.column_names if name.startswith(CARRIED)]
    block = shard.select([*_KEPT, *carried]).take(pa.array(rows))
    sizes = [
        len(content.data) if content.data is not None else size
        for content, size in zip(contents, block.column("size_bytes").to_pylist(), strict=True)
    ]
    columns = {
        "size_bytes": pa.array(sizes, pa.int64()),
        "status": pa.array([content.status for content in contents], pa.string()),
        "error": pa.array([content.error for content in contents], pa.string()),
    }
    for name, values in columns.items():
        block = block.set_column(block.column_names.index(name), name, values)
    return block.append_column("bytes", pa.array([content.data for content in contents], pa.large_binary()))


def _contents(shard: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield (row, content) in order; neighbours in the same container are read together."""
    plan = shard.select([name for name in PLAN_SCHEMA.names if name in shard.column_names]).to_pylist()
    start = 0
    while start < len(plan):
        stop = start + 1
        while stop < len(plan) and _together(plan[start], plan[stop]):
            stop += 1
        rows = plan[start:stop]
        yield from zip(range(start, stop), _read_rows(rows), strict=True)
        start = stop


def _together(first: dict[str, Any], other: dict[str, Any]) -> bool:
    if first["status"] is not None or other["status"] is not None:
        return first["status"] is not None and other["status"] is not None
    if first["method"] != other["method"] and "whole" in (first["method"], other["method"]):
        return False
    if first["method"] == "whole":
        return locations.scheme(os.fsdecode(first["container"])) == locations.scheme(os.fsdecode(other["container"]))
    return bool(first["container"] == other["container"])


def _read_rows(rows: list[dict[str, Any]]) -> Iterable[Content]:
    if rows[0]["status"] is not None:
        return [Content(None, row["status"], row["error"]) for row in rows]
    try:
        if rows[0]["method"] == "whole":
            return _read_whole(rows)
        if rows[0]["method"] == "row":
            return _read_parquet(rows)
        return _read_ranges(rows)
    except RunError:
        raise
    except Exception as error:  # each storage has its own exceptions; the rows name the error
        failure = _failure(error, os.fsdecode(rows[0]["container"]))
        return [failure for _ in rows]


def _failure(error: BaseException, location: str) -> Content:
    """Return the status and error of a row that cannot be read; raise RunError if the storage refuses credentials."""
    shown = masked(location)
    objects.check_credentials(error, location)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Content(None, "missing", f"it was removed since it was listed: {shown}")
    return Content(None, "unreadable", f"{shown}: {reason_of(error, location)}")


def _read_whole(rows: list[dict[str, Any]]) -> Iterable[Content]:
    places = [os.fsdecode(row["container"]) for row in rows]
    if locations.is_local(places[0]):
        return (_read_local(row, location) for row, location in zip(rows, places, strict=True))
    return _read_remote_files(rows, places)


def _read_remote_files(rows: list[dict[str, Any]], places: list[str]) -> Iterator[Content]:
    """Yield whole remote files in order, some read ahead; large ones of unknown size are read one at a time."""
    left, waiting = deque(zip(rows, places, strict=True)), deque[tuple[dict[str, Any], str, Future[Content | None]]]()
    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        while left or waiting:
            while left and len(waiting) < _REMOTE_READS:
                row, location = left.popleft()
                waiting.append((row, location, threads.submit(_read_remote, row, location, _MAX_AHEAD)))
            row, location, reading = waiting.popleft()
            yield reading.result() or _read_remote(row, location, MAX_IMAGE_BYTES) or Content()


def _read_remote(row: dict[str, Any], location: str, most: int) -> Content | None:
    """Read a whole object in one request, with one byte more than its listed size to see whether it grew.

    Return None for an object of unknown size that has more than `most` bytes, if a later try may have more.
    """
    size = row["size_bytes"]
    try:
        filesystem, path = objects.filesystem(location)
        data = retrying(lambda: _read_object(filesystem, path, size, most))
        if size is None and most < len(data) and most < MAX_IMAGE_BYTES:
            return None
        content = _check_whole(row, data)
        listed = row["container_version"]
        if content.data is not None and locations.lists_versions(location) and not _is_version(data, listed):
            now = locations.version(objects.info(location))
            if now != listed:
                return Content(None, "changed", f"it was replaced since it was listed: {masked(location)}; run again")
        return content
    except Exception as error:  # each storage has its own exceptions
        return _failure(error, location)


def _read_object(filesystem: Any, path: str, size: int | None, most: int) -> bytes:
    if size is not None:
        return ranges.read_range(filesystem, path, 0, size + 1) if size else b""
    with ranges.open_stream(filesystem, path) as file:  # a server that does not give the size
        return ranges.read_at_most(file, most)


def _is_version(data: bytes, version: str) -> bool:
    """Whether the bytes are certainly the listed ones: on S3, the ETag of most objects is their MD5."""
    return version == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _read_local(row: dict[str, Any], location: str) -> Content:
    try:
        with open(os.open(location, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # so that it does not wait for a pipe
            size = min(os.fstat(file.fileno()).st_size, MAX_IMAGE_BYTES)
            data = file.read(size + 1) or b""
            now = locations.local_version(os.fstat(file.fileno()))
    except OSError as error:
        return _failure(error, location)
    if row["container_version"] and now != row["container_version"]:
        return _changed(row, len(data))
    return _check_whole(row, data)


def _check_whole(row: dict[str, Any], found: bytes) -> Content:
    if len(found) > MAX_IMAGE_BYTES:
        return Content(None, "too_large", f"it has more than the {MAX_IMAGE_BYTES:,} encoded bytes allowed")
    if row["size_bytes"] is not None and len(found) != row["size_bytes"]:
        return _changed(row, len(found))
    return Content(found)


def _changed(row: dict[str, Any], size: int) -> Content:
    return Content(
        None, "changed", f"it changed since it was listed: {row['size_bytes']} bytes then, {size} now; run again"
    )


def _changed_archive(location: str) -> Content:
    return Content(None, "changed", f"{masked(location)} changed since it was listed; run again")


def _read_ranges(rows: list[dict[str, Any]]) -> list[Content]:
    """Read members of one archive by ranges, neighbours in one request; a failed request affects only its members."""
    location = os.fsdecode(rows[0]["container"])
    spans = _merge([(row["start"], row["start"] + row["length"]) for row in rows])
    chunks, now = (_read_local_ranges if locations.is_local(location) else _read_remote_ranges)(location, spans)
    if rows[0]["container_version"] not in ("", now):
        return [_changed_archive(location)] * len(rows)
    contents = []
    for (start, _, members), chunk in zip(spans, chunks, strict=True):
        for index in members:
            row = rows[index]
            if isinstance(chunk, Content):
                # A bad sector of a disk fails at once, so the members beside it are read one by one. A remote storage
                # has been asked ten times already.
                alone = len(members) == 1 or not locations.is_local(location)
                contents.append(chunk if alone else _read_ranges([row])[0])
            else:
                begin = row["start"] - start
                contents.append(_unpack(row, memoryview(chunk)[begin : begin + row["length"]]))
    return contents


def _read_local_ranges(location: str, spans: list[_Span]) -> tuple[list[bytes | Content], str]:
    """Return the bytes of each span, or why they cannot be read, and the version of the file."""
    chunks: list[bytes | Content] = []
    with open(location, "rb", buffering=0) as file:
        for start, stop, _ in spans:
            try:
                chunks.append(_pread(file.fileno(), start, stop))
            except OSError as error:
                chunks.append(_failure(error, location))
        return chunks, locations.local_version(os.fstat(file.fileno()))


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """Read all bytes of a range that the file has: a read may end before a bad sector, and only the next one fails."""
    data = os.pread(descriptor, stop - start, start)
    while len(data) < stop - start and (more := os.pread(descriptor, stop - start - len(data), start + len(data))):
        data += more
    return data


def _read_remote_ranges(location: str, spans: list[_Span]) -> tuple[list[bytes | Content], str]:
    """Like `_read_local_ranges`, for a remote object: several spans at a time; the version is read after the bytes."""
    filesystem, path = objects.filesystem(location)
    size = objects.info(location).get("size")

    def read(start: int, stop: int) -> bytes | Content:
        stop = stop if size is None else min(stop, size)
        try:
            return retrying(lambda: ranges.read_range(filesystem, path, start, stop))
        except Exception as error:  # each storage has its own exceptions
            return _failure(error, location)

    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        chunks = list(threads.map(read, [start for start, _, _ in spans], [stop for _, stop, _ in spans]))
    return chunks, locations.version(objects.info(location))


def _merge(ranges_: list[tuple[int, int]]) -> list[_Span]:
    """Merge ranges into spans; neighbours share a span."""
    spans: list[_Span] = []
    for index, (start, stop) in enumerate(ranges_):
        if spans and spans[-1][0] <= start <= spans[-1][1] + _MAX_GAP and stop - spans[-1][0] <= _MAX_MERGED:
            first, last, members = spans[-1]
            spans[-1] = (first, max(last, stop), [*members, index])
        else:
            spans.append((start, stop, [index]))
    return spans


def _unpack(row: dict[str, Any], chunk: memoryview) -> Content:
    if row["method"] == "range":
        if len(chunk) < row["length"]:
            return Content(
                None, "truncated", f"the archive ends inside it, after {len(chunk):,} of {row['length']:,} bytes"
            )
        return Content(bytes(chunk))
    return unzip(row, chunk)


def _read_parquet(rows: list[dict[str, Any]]) -> Iterator[Content]:
    """Stream the cells of an image column; after the first error, all following rows get this error."""
    location, listed = os.fsdecode(rows[0]["container"]), rows[0]["container_version"]
    failure, served = _changed_archive(location), 0
    try:
        if listed in ("", _stat_version(location)):
            with ranges.open_file(location) as file:
                for contents in _in_blocks(read_cells(file, file.seek(0, io.SEEK_END), rows)):
                    if listed not in ("", _stat_version(location)):  # checked after reading, as for ranges
                        break
                    yield from contents
                    served += len(contents)
    except RunError:
        raise
    except Exception as error:  # as in _read_rows, but some rows may have been yielded already
        failure = _failure(error, location)
    for _ in rows[served:]:
        yield failure


def _in_blocks(contents: Iterable[Content]) -> Iterator[list[Content]]:
    block, held = [], 0
    try:
        for content in contents:
            block.append(content)
            held += len(content.data or b"")
            if held >= MAX_BLOCK_BYTES:
                yield block
                block, held = [], 0
    except UnreadableError:  # what was read before it is good
        yield block
        raise
    yield block


def _stat_version(location: str) -> str:
    if locations.is_local(location):
        return locations.local_version(os.stat(location))
    return locations.version(objects.info(location))
