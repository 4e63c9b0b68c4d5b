"""Writes, reads and counts parts. A part holds the rows of a finished task; it is complete or does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.errors import OutputError
from crackbatch.results.maps import without_maps
from crackbatch.results.run import PREDICTIONS, Run
from crackbatch.results.table import LABELS, STATUSES, WITHOUT_BYTES
from crackbatch.sources.rows import IDENTITY, block_digest, identity_keys
from crackbatch.storage import locations, objects, ranges
from crackbatch.storage.documents import write_table
from crackbatch.storage.redaction import masked

_THREADS = 8


def rows_per_part(num_rows: int) -> int:
    """Return how many rows a part of a run of this size has: few, so that little is lost, but at most 256 parts."""
    return max(256, min(8192, num_rows // 256))


def write_part(run: Run, rows: pa.Table) -> None:
    """Write finished rows as one part, and their maps before it.

    Its name is made from its images, so a repeated task overwrites its own part.
    """
    name = block_digest(rows)
    write_table(locations.join(run.parts_folder, f"{name}.part"), without_maps(run, rows, name))


def count_part(rows: pa.Table) -> dict[str, Any]:
    """Count the rows of a part: all, those without a score, by status and by label; and the bytes of its images."""
    statuses, labels = values_of(rows.column("status")), values_of(rows.column("label").drop_null())
    return {
        "rows": rows.num_rows,
        "failed": rows.num_rows - statuses.get("ok", 0),
        # Every name, because Ray gives all parts the same columns.
        "statuses": {status: statuses.get(status, 0) for status in STATUSES},
        "labels": {label: labels.get(label, 0) for label in LABELS},
        "size_bytes": pc.sum(rows.column("size_bytes")).as_py() or 0,
    }


def read_done(run: Run) -> tuple[pa.Table, pa.Table]:
    """Return the identities in the published files and in the parts; parts that cannot be read are removed."""
    published = _read_all(run.published_files(), IDENTITY)
    parts = []
    files = run.part_files()
    with ThreadPoolExecutor(_THREADS) as threads:
        tables = threads.map(lambda location: read_part(location, IDENTITY), files)
        for location, table in zip(files, tables, strict=True):
            if table is None:
                objects.remove(location)
            else:
                parts.append(table)
    return concat_identities(published), concat_identities(parts)


def read_scored(out: str, model_id: str) -> pa.Table:
    """Return the identities that any published run in OUT has scored with this model.

    Images with a status in `WITHOUT_BYTES` are left out, because a later run may be able to read them.
    """
    root = locations.join(out, PREDICTIONS)
    files = objects.list_files(root, ".parquet")

    def read(file: str) -> pa.Table:
        rows = read_columns(file, [*IDENTITY, "status", "model_id"])
        had = pc.invert(pc.is_in(rows.column("status"), pa.array(WITHOUT_BYTES)))
        return rows.filter(pc.and_(had, pc.equal(rows.column("model_id"), model_id))).select(IDENTITY)

    with ThreadPoolExecutor(_THREADS) as threads:
        return concat_identities(threads.map(read, files))


def count_failed(run: Run) -> int:
    """Count the images without a score in the run's parts and published files, each once."""
    tables = _read_all([*run.part_files(), *run.published_files()], [*IDENTITY, "status"])
    failed = (table.filter(pc.not_equal(table.column("status"), "ok")).select(IDENTITY) for table in tables)
    return int(pc.count_distinct(identity_keys(concat_identities(failed))).as_py())


def values_of(column: pa.ChunkedArray) -> dict[str, int]:
    """Count how often each value occurs in a text column."""
    return {str(item["values"]): int(item["counts"]) for item in column.value_counts().to_pylist()}


def by_frequency(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts sorted, the most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_columns(location: str, columns: list[str]) -> pa.Table:
    """Read some columns of a Parquet file, and fetch only these.

    Raises OutputError if the file is damaged or lacks one of these columns.
    """
    if (table := read_part(location, columns)) is None:
        raise OutputError(f"{masked(location)} is not a complete crackbatch table; move it elsewhere and run again")
    return table


def read_part(location: str, columns: list[str]) -> pa.Table | None:
    """Read some columns of a part; return None if it lacks one or is damaged, for example because the disk was full."""
    try:
        with ranges.open_file(location) as file:
            # Only in this thread: if a thread of Arrow closes a Python file while Python exits, the process can abort.
            return pq.ParquetFile(file, pre_buffer=False).read(columns, use_threads=False).select(columns)
    except (pa.ArrowInvalid, KeyError):
        return None
    except OSError as error:
        if error.errno is None and error.__cause__ is None:  # raised by Arrow for bytes that it cannot decompress
            return None
        raise


def concat_identities(tables: Iterable[pa.Table]) -> pa.Table:
    """Concatenate identities; without tables, return an empty table."""
    empty = pa.schema([(name, pa.string()) for name in IDENTITY]).empty_table()
    return pa.concat_tables([empty, *tables])


def _read_all(files: list[str], columns: list[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda location: read_columns(location, columns), files))
