"""Shards of a plan. A shard is the unit of work, and is repeated as a whole after a failure.

A shard is one record batch of an Arrow file below `runs/<run_id>/plan/`. A task reads only its own few rows. Locations
with secrets (signed URLs, say) are never written there: the shard takes them along in memory.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.storage import atomic, locations, ranges
from crackbatch.storage.urls import visible_url

_SHARDS_PER_FILE = 512
_MAX_SHARD_BYTES = 32 << 20
_UNKNOWN_SIZE = 256 << 10
_MAY_HOLD_SECRETS = r"(?is)^[a-z][a-z0-9+.-]*://.*[^\w./ ~-]"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Shard(NamedTuple):
    """The place of a shard: the plan's folder, its number, and its packed locations with secrets, if there are any."""

    folder: str
    number: int
    secrets: bytes


def shard_sizes(table: pa.Table) -> list[int]:
    """Return the number of rows of each shard: enough shards for all cores, small enough to repeat after a failure.

    A shard holds at most 32 MB of images. Rows of one Parquet row group stay together, because a row group is always
    read from its beginning.
    """
    num = table.num_rows
    most = min(512, num // 512) if num > 65_536 else max(8, min(128, num // 64))
    sizes = np.asarray(pc.fill_null(table.column("size_bytes"), _UNKNOWN_SIZE))
    sizes = np.maximum(sizes, np.asarray(pc.fill_null(table.column("length"), 0)))  # an archive can name any size
    sizes = np.minimum(sizes, _MAX_SHARD_BYTES)
    ends = np.cumsum(sizes)
    grouped = np.asarray(table.column("row_group").is_valid())
    borders = np.append(_row_group_borders(table), num)
    counts, start = [], 0
    while start < num:
        before = ends[start - 1] if start else 0
        border = int(borders[np.searchsorted(borders, start, side="right")])
        if grouped[start]:
            stop = border
        else:
            stop = min(start + most, int(np.searchsorted(ends, before + _MAX_SHARD_BYTES, side="right")), border)
            stop = max(stop, start + 1)
        counts.append(stop - start)
        start = stop
    return counts


def _row_group_borders(table: pa.Table) -> np.ndarray:
    """Return the numbers of the rows that start a row group of a Parquet file, or come directly after one."""
    group = np.asarray(pc.fill_null(table.column("row_group"), -1))
    first = np.asarray(pc.fill_null(table.column("start"), 0))
    differs = (group[1:] != group[:-1]) | ((group[1:] >= 0) & (first[1:] != first[:-1] + 1))
    return np.flatnonzero(differs) + 1


def write_shards(table: pa.Table, folder: str) -> list[Shard]:
    """Write a plan as shards below a folder, without the secrets of its locations, and return the shards."""
    sizes = shard_sizes(table)
    secrets = _secret_locations(table)
    shards: list[Shard] = []
    start = 0
    for first in range(0, len(sizes), _SHARDS_PER_FILE):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=_COMPRESSED) as writer:
            for size in sizes[first : first + _SHARDS_PER_FILE]:
                shard, own = table.slice(start, size), secrets.slice(start, size)
                if is_secret := own.null_count < size:
                    shard = _without(shard, own)
                writer.write_batch(shard.combine_chunks().to_batches()[0])
                shards.append(Shard(folder, len(shards), _pack(own) if is_secret else b""))
                start += size
        atomic.write_whole(_shard_file(folder, first // _SHARDS_PER_FILE), sink.getvalue().to_pybytes())
    return shards


def read_shard(shard: Shard) -> pa.Table:
    """Read the rows of one shard of a plan."""
    location = _shard_file(shard.folder, shard.number // _SHARDS_PER_FILE)
    with ranges.open_file(location) as file, pa.ipc.open_file(file) as reader:
        rows = pa.Table.from_batches([reader.get_batch(shard.number % _SHARDS_PER_FILE)])
    if not shard.secrets:
        return rows
    with pa.ipc.open_stream(shard.secrets) as packed:
        whole = pc.coalesce(packed.read_all().column("container"), rows.column("container"))
    return rows.set_column(rows.column_names.index("container"), "container", whole)


def _secret_locations(table: pa.Table) -> pa.ChunkedArray:
    """Return the locations that hold secrets, null for the others."""
    containers = table.column("container")
    likely = pc.match_substring_regex(containers, _MAY_HOLD_SECRETS)
    if not pc.any(likely).as_py():
        return pa.chunked_array([pa.nulls(table.num_rows, containers.type)])
    encoded = pc.unique(containers.filter(likely)).to_pylist()
    shown = {location: os.fsencode(visible_url(os.fsdecode(location))) for location in encoded}
    secret = pa.array([location for location, text in shown.items() if text != location], containers.type)
    return pc.if_else(pc.is_in(containers, secret), containers, pa.scalar(None, containers.type))


def _without(rows: pa.Table, secrets: pa.ChunkedArray) -> pa.Table:
    containers = rows.column("container")
    rest = pc.if_else(pc.is_valid(secrets), pa.scalar(None, containers.type), containers)
    return rows.set_column(rows.column_names.index("container"), "container", rest)


def _pack(secrets: pa.ChunkedArray) -> bytes:
    rows, sink = pa.table({"container": secrets}).combine_chunks(), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_COMPRESSED) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _shard_file(folder: str, number: int) -> str:
    return locations.join(folder, f"{number:05d}.arrow")
