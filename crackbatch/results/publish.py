"""Publishing turns the parts of a run into table files that readers see: every planned row, each exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.errors import PublishError
from crackbatch.results.maps import publish_maps
from crackbatch.results.parts import concat_identities, read_part
from crackbatch.results.run import Run
from crackbatch.sources.rows import IDENTITY, in_order, one_each
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import read_table
from crackbatch.storage.redaction import masked

_THREADS = 8
ROW_GROUP_ROWS = 128 * 1024

_MAX_FILE_ROWS = 4 * ROW_GROUP_ROWS  # sorted in memory together; less than a gigabyte


def publish(run: Run, expected: pa.Table, schema: pa.Schema) -> list[str]:
    """Write the rows of all parts to visible table files and return these files.

    `expected` are the planned identities that are not published yet. Raises PublishError and publishes nothing unless
    the parts hold a row for each of them. If an image has two rows, one is published. Rows of other identities (an
    interrupted attempt may have scored images that changed later) are not published.
    """
    files = run.part_files()
    counts, kept = _choose_rows(files, expected)
    if len(kept) != expected.num_rows:
        missing = expected.num_rows - len(kept)
        raise PublishError(
            f"{missing:,} of {expected.num_rows:,} planned images have no row, so nothing was published; run again"
            " (on several machines, all of them must be able to write to --out)"
        )
    number = run.next_number()
    if not expected.num_rows and number:
        return []
    written: list[tuple[str, str]] = []
    # A run without new images publishes an empty table.
    for rows in _tables(files, counts, kept, schema) if expected.num_rows else [schema.empty_table()]:
        visible = run.published_file(number + len(written))
        hidden = locations.join(run.folder, "publish", f"{visible.rsplit('/', 1)[-1]}.whole")
        _write_sorted(rows, hidden)
        written.append((hidden, visible))
    publish_maps(run, expected)
    for hidden, visible in written:  # all renames come last and together, so that readers rarely see only some files
        if objects.exists(visible):
            raise PublishError(f"{masked(visible)} already exists, but no listing showed it; it is not replaced")
        objects.move(hidden, visible)
    return [visible for _, visible in written]


def _choose_rows(files: list[str], expected: pa.Table) -> tuple[list[int], np.ndarray]:
    """Return the number of rows of each part, and the numbers of the rows to publish, counted over all parts."""
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(threads.map(lambda location: read_part(location, IDENTITY), files))
    identities = [table for table in read if table is not None]
    if len(identities) < len(read):
        raise PublishError("a part can no longer be read; run again")
    kept = one_each(concat_identities(identities), expected)
    return [table.num_rows for table in identities], kept


def _tables(files: list[str], counts: list[int], kept: np.ndarray, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the kept rows of all parts as tables with a limited number of rows."""
    ends = np.cumsum(counts)
    held: list[pa.Table] = []
    num = 0
    for index, rows in enumerate(_read_parts(files)):
        start = ends[index] - counts[index]
        mine = kept[np.searchsorted(kept, start) : np.searchsorted(kept, ends[index])] - start
        held.append(_conform(rows if len(mine) == rows.num_rows else rows.take(pa.array(mine)), schema))
        num += len(mine)
        if num >= _MAX_FILE_ROWS or index == len(files) - 1:
            yield pa.concat_tables(held)
            held, num = [], 0


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows in the current schema: the manifest may have other columns than at an interrupted attempt."""
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            columns.append(rows.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            raise PublishError(
                f"column {field.name!r} of the manifest is now {field.type}, but had another type when part of the"
                f" run was scored ({error}); give another --run-id"
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _read_parts(files: list[str]) -> Iterator[pa.Table]:
    """Yield whole parts in order. Threads read a few parts ahead, each in one request."""
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for location in files:
            if len(waiting) == _THREADS:
                yield waiting.popleft().result()
            waiting.append(threads.submit(_read_whole, location))
        while waiting:
            yield waiting.popleft().result()


def _read_whole(location: str) -> pa.Table:
    try:
        return read_table(location)
    except pa.ArrowException:
        raise PublishError("a part can no longer be read; run again") from None


def _write_sorted(rows: pa.Table, location: str) -> None:
    """Write the rows, most probable cracks first; of usual tables, one row group at a time is copied in memory."""
    keys = [("crack_probability", "descending", "at_end"), ("image_uri", "ascending", "at_end")]
    order = pc.sort_indices(rows, sort_keys=keys)
    with (
        atomic.new_file(location) as file,
        pq.ParquetWriter(file, rows.schema, compression="zstd") as writer,
    ):
        for group in in_order(rows, order, ROW_GROUP_ROWS):
            writer.write_table(group)
