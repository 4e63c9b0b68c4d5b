"""From rows of a plan to rows with their encoded bytes: ranged, merged reads, each checked against the plan.

`fetch` never raises for an image: what cannot be read gets its status and the storage's message.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import RunError
from crackbatch.sources.members import MAX_BLOCK_BYTES, MAX_IMAGE_BYTES, Content
from crackbatch.sources.parquet import parquet_cells
from crackbatch.sources.rows import CARRIED
from crackbatch.sources.rows import SCHEMA as PLAN_SCHEMA
from crackbatch.sources.zips import unzip
from crackbatch.storage import locations, objects, ranges
from crackbatch.storage.redaction import reason_of, redact
from crackbatch.storage.retry import retrying

# A gap up to this size between two wanted ranges is cheaper to read than a second request is to make.
_MAX_GAP = 64 << 10
_MAX_MERGED = 8 << 20
_REMOTE_READS = 16

# What scoring needs of the plan; where the bytes lay is no longer of interest once they are here.
_KEPT = ("image_uri", "archive", "version", "size_bytes", "status", "error")


_Span = tuple[int, int, list[int]]  # start, stop, and which of the rows lie there


def fetch(shard: pa.Table) -> Iterator[pa.Table]:
    """Tables of about 32 MB with the shard's rows in their order and a column `bytes`, null where there are none."""
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
    """(row, content) in order, reading neighbours that lie in the same container together."""
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
    except Exception as error:  # each storage raises its own; the rows say which
        failure = _failure(error, os.fsdecode(rows[0]["container"]))
        return [failure for _ in rows]


def _failure(error: BaseException, location: str) -> Content:
    """What a row says whose bytes the storage does not give; RunError where it would give none of them."""
    shown = redact(location)
    objects.check_credentials(error, location)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Content(None, "missing", f"gone since it was listed: {shown}")
    return Content(None, "unreadable", f"{shown}: {reason_of(error)}")


def _read_whole(rows: list[dict[str, Any]]) -> Iterable[Content]:
    places = [os.fsdecode(row["container"]) for row in rows]
    if locations.is_local(places[0]):
        return (_read_local(row, location) for row, location in zip(rows, places, strict=True))
    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        return list(threads.map(_read_remote, rows, places))


def _read_remote(row: dict[str, Any], location: str) -> Content:
    """A whole object in one request, one byte beyond its listed size to see whether it grew."""
    size = row["size_bytes"]
    try:
        filesystem, path = objects.filesystem(location)
        data = retrying(lambda: _read_object(filesystem, path, size))
        content = _check_whole(row, data)
        listed = row["container_version"]
        if content.data is not None and locations.lists_versions(location) and not _is_version(data, listed):
            now = locations.version(objects.info(location))
            if now != listed:
                return Content(None, "changed", f"replaced since it was listed: {redact(location)}; run again")
        return content
    except Exception as error:  # each storage raises its own
        return _failure(error, location)


def _read_object(filesystem: Any, path: str, size: int | None) -> bytes:
    if size is not None:
        return ranges.read_range(filesystem, path, 0, size + 1) if size else b""
    with ranges.open_stream(filesystem, path) as file:  # a server that does not say how long it is
        return file.read(MAX_IMAGE_BYTES + 1)


def _is_version(data: bytes, version: str) -> bool:
    """Whether the bytes are surely those that were listed: S3's ETag of most objects is their MD5."""
    return version == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _read_local(row: dict[str, Any], location: str) -> Content:
    try:
        with open(os.open(location, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe must not be waited for
            data = file.read(MAX_IMAGE_BYTES + 1) or b""
            now = locations.local_version(os.fstat(file.fileno()))
    except OSError as error:
        return _failure(error, location)
    if row["container_version"] and now != row["container_version"]:
        return _changed(row, len(data))
    return _check_whole(row, data)


def _check_whole(row: dict[str, Any], found: bytes) -> Content:
    if len(found) > MAX_IMAGE_BYTES:
        return Content(None, "too_large", f"more than the {MAX_IMAGE_BYTES:,} encoded bytes allowed")
    if row["size_bytes"] is not None and len(found) != row["size_bytes"]:
        return _changed(row, len(found))
    return Content(found)


def _changed(row: dict[str, Any], size: int) -> Content:
    return Content(
        None, "changed", f"changed since it was listed: {row['size_bytes']} bytes then, {size} now; run again"
    )


def _changed_archive(location: str) -> Content:
    return Content(None, "changed", f"{redact(location)} changed since it was listed; run again")


def _read_ranges(rows: list[dict[str, Any]]) -> list[Content]:
    """Members of one archive by their ranges, neighbours in one request; one that fails costs its own members alone."""
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
                # A disk's bad sector answers at once, so that those beside it are read one by one; a store was asked
                # ten times already.
                alone = len(members) == 1 or not locations.is_local(location)
                contents.append(chunk if alone else _read_ranges([row])[0])
            else:
                begin = row["start"] - start
                contents.append(_unpack(row, memoryview(chunk)[begin : begin + row["length"]]))
    return contents


def _read_local_ranges(location: str, spans: list[_Span]) -> tuple[list[bytes | Content], str]:
    """The bytes of each run, as far as the file has them, or why they cannot be read; and the file's version."""
    chunks: list[bytes | Content] = []
    with open(location, "rb", buffering=0) as file:
        for start, stop, _ in spans:
            try:
                chunks.append(_pread(file.fileno(), start, stop))
            except OSError as error:
                chunks.append(_failure(error, location))
        return chunks, locations.local_version(os.fstat(file.fileno()))


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """All bytes of a range that the file has: one read gives those before a bad sector, and only the next one fails."""
    data = os.pread(descriptor, stop - start, start)
    while len(data) < stop - start and (more := os.pread(descriptor, stop - start - len(data), start + len(data))):
        data += more
    return data


def _read_remote_ranges(location: str, spans: list[_Span]) -> tuple[list[bytes | Content], str]:
    """The same of an object elsewhere, several spans at a time; its version is that afterwards, of what was read."""
    filesystem, path = objects.filesystem(location)
    size = objects.info(location).get("size")

    def read(start: int, stop: int) -> bytes | Content:
        stop = stop if size is None else min(stop, size)
        try:
            return retrying(lambda: ranges.read_range(filesystem, path, start, stop))
        except Exception as error:  # each storage raises its own
            return _failure(error, location)

    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        chunks = list(threads.map(read, [start for start, _, _ in spans], [stop for _, stop, _ in spans]))
    return chunks, locations.version(objects.info(location))


def _merge(ranges_: list[tuple[int, int]]) -> list[_Span]:
    """Requests that cover the ranges; neighbours share one."""
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
                None, "truncated", f"its archive ends inside it: {len(chunk):,} of {row['length']:,} bytes are there"
            )
        return Content(bytes(chunk))
    return unzip(row, chunk)


def _read_parquet(rows: list[dict[str, Any]]) -> Iterator[Content]:
    """Cells of an image column, streamed through their row groups; the first error is that of all that follow."""
    location, listed = os.fsdecode(rows[0]["container"]), rows[0]["container_version"]
    failure, served = _changed_archive(location), 0
    try:
        if listed in ("", _stat_version(location)):
            with ranges.open_file(location) as file:
                for contents in _in_blocks(parquet_cells(pq.ParquetFile(file), rows)):
                    if listed not in ("", _stat_version(location)):  # afterwards, as of ranges
                        break
                    yield from contents
                    served += len(contents)
    except RunError:
        raise
    except Exception as error:  # as in _read_rows, but some rows may be out already
        failure = _failure(error, location)
    for _ in rows[served:]:
        yield failure


def _in_blocks(contents: Iterable[Content]) -> Iterator[list[Content]]:
    block, held = [], 0
    for content in contents:
        block.append(content)
        held += len(content.data or b"")
        if held >= MAX_BLOCK_BYTES:
            yield block
            block, held = [], 0
    yield block


def _stat_version(location: str) -> str:
    if locations.is_local(location):
        return locations.local_version(os.stat(location))
    return locations.version(objects.info(location))
