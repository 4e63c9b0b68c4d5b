"""Shards of a plan. A shard is the unit of work, and is repeated as a whole after a failure.

A shard is one record batch of an Arrow file below `runs/<run_id>/plan/`. A task reads only its own few rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.storage import atomic, locations, ranges

_SHARDS_PER_FILE = 512
_MAX_SHARD_BYTES = 32 << 20
_UNKNOWN_SIZE = 256 << 10


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


def write_shards(table: pa.Table, folder: str) -> int:
    """Write a plan as numbered shards below a folder and return their number."""
    sizes = shard_sizes(table)
    start = 0
    for first in range(0, len(sizes), _SHARDS_PER_FILE):
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            for size in sizes[first : first + _SHARDS_PER_FILE]:
                shard = table.slice(start, size).combine_chunks()
                writer.write_batch(shard.to_batches()[0])
                start += size
        atomic.write_whole(_shard_file(folder, first // _SHARDS_PER_FILE), sink.getvalue().to_pybytes())
    return len(sizes)


def read_shard(folder: str, index: int) -> pa.Table:
    """Read one shard of a plan."""
    location = _shard_file(folder, index // _SHARDS_PER_FILE)
    with ranges.open_file(location) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(index % _SHARDS_PER_FILE)])


def _shard_file(folder: str, number: int) -> str:
    return locations.join(folder, f"{number:05d}.arrow")
