"""Publishing: the parts of a run become table files that readers see, all rows that were planned, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.errors import PublishError
from crackbatch.results.parts import concat_identities, read_part
from crackbatch.results.run import Run
from crackbatch.sources.rows import IDENTITY, identity_keys
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import read_table
from crackbatch.storage.redaction import redact

_THREADS = 8
ROW_GROUP_ROWS = 128 * 1024


_MAX_FILE_ROWS = 4 * ROW_GROUP_ROWS  # sorted in memory at once: under a gigabyte


def publish(run: Run, expected: pa.Table, schema: pa.Schema) -> list[str]:
    """Make the parts' rows visible as table files; `expected` are the planned identities that are not yet published.

    Raises PublishError, and publishes nothing, unless the parts hold a row for each planned image. Rows that an
    interrupted attempt made of images that have changed since are left behind; an image done twice is taken once.
    """
    files = run.part_files()
    counts, kept = _choose_rows(files, expected)
    if len(kept) != expected.num_rows:
        missing = expected.num_rows - len(kept)
        raise PublishError(
            f"{missing:,} of {expected.num_rows:,} planned images have no row: nothing was published; run again"
            " (if this machine is one of several, --out must be a place that all of them write to)"
        )
    taken = [int(file[-len("00000.parquet") : -len(".parquet")]) for file in run.published_files()]
    if not expected.num_rows and taken:
        return []
    written: list[tuple[str, str]] = []
    number = max(taken, default=-1) + 1
    # A night with nothing new has its (empty) table too.
    for rows in _tables(files, counts, kept, schema) if expected.num_rows else [schema.empty_table()]:
        name = f"{run.run_id}-{number + len(written):05d}.parquet"
        hidden = locations.join(run.folder, "publish", f"{name}.whole")
        visible = locations.join(run.out, "predictions", f"date={run.date}", name)
        _write_sorted(rows, hidden)
        written.append((hidden, visible))
    for hidden, visible in written:  # renamed together, so that readers hardly ever see some without the others
        if objects.exists(visible):
            raise PublishError(f"{redact(visible)} is there already, though no listing named it: nothing replaces it")
        objects.move(hidden, visible)
    return [visible for _, visible in written]


def _choose_rows(files: list[str], expected: pa.Table) -> tuple[list[int], np.ndarray]:
    """(rows of each part, numbers of the rows to be published, counted through all parts)."""
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(threads.map(lambda location: read_part(location, IDENTITY), files))
    identities = [table for table in read if table is not None]
    if len(identities) < len(read):
        raise PublishError("a part cannot be read any more; run again")
    kept = _match(concat_identities(identities), expected)
    return [table.num_rows for table in identities], kept


def _match(found: pa.Table, expected: pa.Table) -> np.ndarray:
    """Numbers of the rows of `found` that are expected, one for each identity, ascending."""
    # Arrow's joins and groups, which would say the same, hold every text twice more.
    positions = pc.index_in(identity_keys(found), identity_keys(expected).combine_chunks()).fill_null(-1).to_numpy()
    rows = np.flatnonzero(positions >= 0)
    _, first = np.unique(positions[rows], return_index=True)
    return np.sort(rows[first])


def _tables(files: list[str], counts: list[int], kept: np.ndarray, schema: pa.Schema) -> Iterator[pa.Table]:
    """The kept rows of all parts, in tables of a bounded number of rows."""
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
    """The rows with the schema of today: a manifest may have gained or lost a column since an interrupted attempt."""
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            columns.append(rows.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            raise PublishError(
                f"column {field.name!r} of the manifest is now {field.type}, and was not when part of the run was"
                f" scored ({error}); give the run another --run-id"
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _read_parts(files: list[str]) -> Iterator[pa.Table]:
    """Whole parts, each in one request, a few read ahead: writing them is slower than reading."""
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
        raise PublishError("a part cannot be read any more; run again") from None


def _write_sorted(rows: pa.Table, location: str) -> None:
    """Write the rows, most probable cracks first, and never hold more than a row group of them twice."""
    keys = [("crack_probability", "descending", "at_end"), ("image_uri", "ascending", "at_end")]
    order = pc.sort_indices(rows, sort_keys=keys)
    with (
        atomic.new_file(location) as file,
        pq.ParquetWriter(file, rows.schema, compression="zstd") as writer,
    ):
        for start in range(0, max(1, len(order)), ROW_GROUP_ROWS):
            writer.write_table(rows.take(order[start : start + ROW_GROUP_ROWS]))
