"""From rows of a plan to rows with their encoded bytes: ranged, merged reads, each checked against the plan.

`fetch` never raises for an image: what cannot be read gets its status and the storage's message.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.archive import MAX_IMAGE_BYTES, image_column
from crackbatch.errors import RunError
from crackbatch.plan_rows import SCHEMA as PLAN_SCHEMA
from crackbatch.storage import objects, ranges
from crackbatch.storage.redaction import reason_of, redact
from crackbatch.storage.retry import retrying
from crackbatch.table import CARRIED
from crackbatch.zips import LOCAL_HEADER, LOCAL_MAGIC

# A gap up to this size between two wanted ranges is cheaper to read than a second request is to make.
_MAX_GAP = 64 << 10
_MAX_MERGED = 8 << 20
_MAX_BLOCK_BYTES = 32 << 20
_PARQUET_ROWS = 32
_REMOTE_READS = 16

# What scoring needs of the plan; where the bytes lay is no longer of interest once they are here.
_KEPT = ("image_uri", "archive", "version", "size_bytes", "status", "error")


@dataclass(slots=True)
class _Content:
    """The encoded bytes of one image, or its status and the cause."""

    data: bytes | None = None
    status: str | None = None
    error: str | None = None


_Run = tuple[int, int, list[int]]  # start, stop, and which of the rows lie there


def fetch(shard: pa.Table) -> Iterator[pa.Table]:
    """Tables of about 32 MB with the shard's rows in their order and a column `bytes`, null where there are none."""
    rows, contents, held = [], [], 0
    for row, content in _contents(shard):
        rows.append(row)
        contents.append(content)
        held += len(content.data or b"")
        if held >= _MAX_BLOCK_BYTES:
            yield _block(shard, rows, contents)
            rows, contents, held = [], [], 0
    if rows:
        yield _block(shard, rows, contents)


def _block(shard: pa.Table, rows: list[int], contents: list[_Content]) -> pa.Table:
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


def _contents(shard: pa.Table) -> Iterator[tuple[int, _Content]]:
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
        return objects.scheme(os.fsdecode(first["container"])) == objects.scheme(os.fsdecode(other["container"]))
    return bool(first["container"] == other["container"])


def _read_rows(rows: list[dict[str, Any]]) -> Iterable[_Content]:
    if rows[0]["status"] is not None:
        return [_Content(None, row["status"], row["error"]) for row in rows]
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


def _failure(error: BaseException, location: str) -> _Content:
    """What a row says whose bytes the storage does not give; RunError where it would give none of them."""
    shown = redact(location)
    objects.check_credentials(error, location)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return _Content(None, "missing", f"gone since it was listed: {shown}")
    return _Content(None, "unreadable", f"{shown}: {reason_of(error)}")


def _read_whole(rows: list[dict[str, Any]]) -> Iterable[_Content]:
    places = [os.fsdecode(row["container"]) for row in rows]
    if objects.is_local(places[0]):
        return (_read_local(row, location) for row, location in zip(rows, places, strict=True))
    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        return list(threads.map(_read_remote, rows, places))


def _read_remote(row: dict[str, Any], location: str) -> _Content:
    """A whole object in one request, one byte beyond its listed size to see whether it grew."""
    size = row["size_bytes"]
    try:
        filesystem, path = objects.filesystem(location)
        data = retrying(lambda: _read_object(filesystem, path, size))
        content = _check_whole(row, data)
        listed = row["container_version"]
        if content.data is not None and objects.lists_versions(location) and not _is_version(data, listed):
            now = objects.version(objects.info(location))
            if now != listed:
                return _Content(None, "changed", f"replaced since it was listed: {redact(location)}; run again")
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


def _read_local(row: dict[str, Any], location: str) -> _Content:
    try:
        with open(os.open(location, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe must not be waited for
            data = file.read(MAX_IMAGE_BYTES + 1) or b""
            now = objects.local_version(os.fstat(file.fileno()))
    except OSError as error:
        return _failure(error, location)
    if row["container_version"] and now != row["container_version"]:
        return _changed(row, len(data))
    return _check_whole(row, data)


def _check_whole(row: dict[str, Any], found: bytes) -> _Content:
    if len(found) > MAX_IMAGE_BYTES:
        return _Content(None, "too_large", f"more than the {MAX_IMAGE_BYTES:,} encoded bytes allowed")
    if row["size_bytes"] is not None and len(found) != row["size_bytes"]:
        return _changed(row, len(found))
    return _Content(found)


def _changed(row: dict[str, Any], size: int) -> _Content:
    return _Content(
        None, "changed", f"changed since it was listed: {row['size_bytes']} bytes then, {size} now; run again"
    )


def _changed_archive(location: str) -> _Content:
    return _Content(None, "changed", f"{redact(location)} changed since it was listed; run again")


def _read_ranges(rows: list[dict[str, Any]]) -> list[_Content]:
    """Members of one archive by their ranges, neighbours in one request; one that fails costs its own members alone."""
    location = os.fsdecode(rows[0]["container"])
    runs = _merge([(row["start"], row["start"] + row["length"]) for row in rows])
    chunks, now = (_read_local_ranges if objects.is_local(location) else _read_remote_ranges)(location, runs)
    if rows[0]["container_version"] not in ("", now):
        return [_changed_archive(location)] * len(rows)
    contents = []
    for (start, _, members), chunk in zip(runs, chunks, strict=True):
        for index in members:
            row = rows[index]
            if isinstance(chunk, _Content):
                # A disk's bad sector answers at once, so that those beside it are read one by one; a store was asked
                # ten times already.
                alone = len(members) == 1 or not objects.is_local(location)
                contents.append(chunk if alone else _read_ranges([row])[0])
            else:
                begin = row["start"] - start
                contents.append(_unpack(row, memoryview(chunk)[begin : begin + row["length"]]))
    return contents


def _read_local_ranges(location: str, runs: list[_Run]) -> tuple[list[bytes | _Content], str]:
    """The bytes of each run, as far as the file has them, or why they cannot be read; and the file's version."""
    chunks: list[bytes | _Content] = []
    with open(location, "rb", buffering=0) as file:
        for start, stop, _ in runs:
            try:
                chunks.append(_pread(file.fileno(), start, stop))
            except OSError as error:
                chunks.append(_failure(error, location))
        return chunks, objects.local_version(os.fstat(file.fileno()))


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """All bytes of a range that the file has: one read gives those before a bad sector, and only the next one fails."""
    data = os.pread(descriptor, stop - start, start)
    while len(data) < stop - start and (more := os.pread(descriptor, stop - start - len(data), start + len(data))):
        data += more
    return data


def _read_remote_ranges(location: str, runs: list[_Run]) -> tuple[list[bytes | _Content], str]:
    """The same of an object elsewhere, several runs at a time; its version is that afterwards, of what was read."""
    filesystem, path = objects.filesystem(location)
    size = objects.info(location).get("size")

    def read(start: int, stop: int) -> bytes | _Content:
        stop = stop if size is None else min(stop, size)
        try:
            return retrying(lambda: ranges.read_range(filesystem, path, start, stop))
        except Exception as error:  # each storage raises its own
            return _failure(error, location)

    with ThreadPoolExecutor(_REMOTE_READS) as threads:
        chunks = list(threads.map(read, [start for start, _, _ in runs], [stop for _, stop, _ in runs]))
    return chunks, objects.version(objects.info(location))


def _merge(spans: list[tuple[int, int]]) -> list[_Run]:
    """Requests that cover the ranges; neighbours share one."""
    runs: list[_Run] = []
    for index, (start, stop) in enumerate(spans):
        if runs and runs[-1][0] <= start <= runs[-1][1] + _MAX_GAP and stop - runs[-1][0] <= _MAX_MERGED:
            first, last, members = runs[-1]
            runs[-1] = (first, max(last, stop), [*members, index])
        else:
            runs.append((start, stop, [index]))
    return runs


def _unpack(row: dict[str, Any], chunk: memoryview) -> _Content:
    if row["method"] == "range":
        if len(chunk) < row["length"]:
            return _Content(
                None, "truncated", f"its archive ends inside it: {len(chunk):,} of {row['length']:,} bytes are there"
            )
        return _Content(bytes(chunk))
    return _unzip(row, chunk)


def _unzip(row: dict[str, Any], chunk: memoryview) -> _Content:
    """A zip member from the bytes of its local header on; its size is bounded by what the directory says."""
    size = row["size_bytes"]
    if len(chunk) < LOCAL_HEADER.size or chunk[:4] != LOCAL_MAGIC:
        return _Content(None, "corrupt", "there is no member where the zip's directory says")
    name_length, extra_length = struct.unpack_from("<HH", chunk, 26)
    packed = chunk[LOCAL_HEADER.size + name_length + extra_length :]
    if row["method"] == "zip-stored":
        data = bytes(packed[:size])
    else:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(packed, size + 1)
        except zlib.error as error:
            return _Content(None, "corrupt", f"zip member cannot be unpacked: {error}")
        if len(data) > size:
            return _Content(None, "corrupt", f"zip member is larger than the {size:,} bytes its directory says")
    if len(data) < size:
        return _Content(None, "truncated", f"zip member is cut off: {len(data):,} of {size:,} bytes are there")
    if zlib.crc32(data) != row["crc32"]:
        return _Content(None, "corrupt", "zip member does not match its checksum (CRC-32)")
    return _Content(data)


def _read_parquet(rows: list[dict[str, Any]]) -> Iterator[_Content]:
    """Cells of an image column, streamed through their row groups; the first error is that of all that follow."""
    location, listed = os.fsdecode(rows[0]["container"]), rows[0]["container_version"]
    failure, served = _changed_archive(location), 0
    try:
        if listed in ("", _stat_version(location)):
            with ranges.open_file(location) as file:
                for contents in _in_blocks(_parquet_cells(pq.ParquetFile(file), rows)):
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


def _in_blocks(contents: Iterable[_Content]) -> Iterator[list[_Content]]:
    block, held = [], 0
    for content in contents:
        block.append(content)
        held += len(content.data or b"")
        if held >= _MAX_BLOCK_BYTES:
            yield block
            block, held = [], 0
    yield block


def _stat_version(location: str) -> str:
    if objects.is_local(location):
        return objects.local_version(os.stat(location))
    return objects.version(objects.info(location))


def _parquet_cells(parquet: pq.ParquetFile, rows: list[dict[str, Any]]) -> Iterator[_Content]:
    """Each row's cell, from its own row group; a group with fewer rows than the footer says leaves its rows corrupt."""
    column = image_column(parquet.schema_arrow)
    assert column is not None
    for group, members in itertools.groupby(rows, key=lambda row: int(row["row_group"])):
        wanted = list(members)
        first = sum(parquet.metadata.row_group(index).num_rows for index in range(group))
        served = 0
        for batch in parquet.iter_batches(_num_at_once(parquet, group), row_groups=[group], columns=[column]):
            cells = batch.column(0)
            while served < len(wanted) and wanted[served]["start"] < first + len(cells):
                yield _cell(cells[wanted[served]["start"] - first])
                served += 1
            first += len(cells)
            if served == len(wanted):
                break
        for _ in wanted[served:]:
            yield _Content(None, "corrupt", f"row group {group} has fewer rows than the file's footer says")


def _num_at_once(parquet: pq.ParquetFile, group: int) -> int:
    """How many rows of a row group to decode together: few where they are large, by their mean size."""
    metadata = parquet.metadata.row_group(group)
    return max(1, min(_PARQUET_ROWS, int(_MAX_BLOCK_BYTES * metadata.num_rows // max(metadata.total_byte_size, 1))))


def _cell(scalar: pa.Scalar) -> _Content:
    path = None
    if pa.types.is_struct(scalar.type):
        path = scalar["path"].as_py() if scalar.is_valid and "path" in scalar else None
        scalar = scalar["bytes"] if scalar.is_valid else pa.scalar(None, pa.binary())
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        where = f"; it names {path!r}, which lies outside" if path else ""
        return _Content(None, "missing", f"the row holds no bytes{where}")
    if len(scalar.as_buffer()) > MAX_IMAGE_BYTES:
        return _Content(None, "too_large", f"{len(scalar.as_buffer()):,} encoded bytes are more than allowed")
    return _Content(bytes(scalar.as_buffer()))
