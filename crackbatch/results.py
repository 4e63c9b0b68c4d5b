"""What a run leaves in OUT: its parts while it works, one published table at the end, and the files that describe it.

    OUT/predictions/date=D/<run_id>-NNNNN.parquet   published rows only
    OUT/runs/<run_id>/run.json                      what was asked, written first
    OUT/runs/<run_id>/plan/ parts/ scratch/ attempts/   while it works; removed when it is published
    OUT/runs/<run_id>/failure.json                  why it broke off, until it is continued
    OUT/runs/<run_id>/summary.json                  written last

Everything is written whole or not at all, and every step can be done again: a run that was killed anywhere is
continued by subtracting what its parts and its published files hold from what its sources hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.errors import OptionError, OutputError, PublishError
from crackbatch.sources.rows import IDENTITY, block_digest, identity_keys
from crackbatch.storage import objects, ranges
from crackbatch.storage.redaction import redact
from crackbatch.table import WITHOUT_BYTES

ROW_GROUP_ROWS = 128 * 1024
_MAX_FILE_ROWS = 4 * ROW_GROUP_ROWS  # sorted in memory at once: under a gigabyte
_THREADS = 8


@dataclass(frozen=True)
class Run:
    """One scoring run in an output location."""

    out: str
    run_id: str
    date: str

    @property
    def folder(self) -> str:
        return objects.join(self.out, "runs", self.run_id)

    @property
    def plan_folder(self) -> str:
        return objects.join(self.folder, "plan")

    @property
    def parts_folder(self) -> str:
        return objects.join(self.folder, "parts")

    @property
    def scratch_folder(self) -> str:
        return objects.join(self.folder, "scratch")

    @property
    def attempts_folder(self) -> str:
        return objects.join(self.folder, "attempts")


def choose_run(out: str, fingerprint: str, date: str | None, run_id: str | None) -> Run:
    """The run that a request means: the named one, an unfinished one of the same fingerprint, or a new one.

    Raises OptionError where the name belongs to a run with other sources, model or options.
    """
    date = check_names(date, run_id)
    if run_id is None and date is None and (unfinished := _unfinished(out, fingerprint)):
        return unfinished
    today = datetime.now(UTC).date().isoformat()
    run_id = run_id or f"{date or today}-{fingerprint[:8]}"
    known = read_json(objects.join(out, "runs", run_id, "run.json"))
    if known is not None:
        if known.get("fingerprint") != fingerprint:
            raise OptionError(
                f"run {run_id} in {redact(out)} was made from other sources, another model or other options;"
                " choose another --run-id"
            )
        if date is not None and known["date"] != date:
            raise OptionError(f"run {run_id} has the date {known['date']}, not {date}; choose another --run-id")
        date = known["date"]
    return Run(out, run_id, date or today)


def check_names(date: str | None, run_id: str | None) -> str | None:
    """The date as it is written in names; OptionError for one that is none, or a name that no run can have."""
    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
        raise OptionError(f"--run-id {run_id!r}: use letters, digits, '.', '_' and '-' only")
    try:
        return None if date is None else datetime.strptime(str(date), "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise OptionError(f"--date {date!r} is no date; write it as 2026-11-20") from None


def fingerprint_of(request: dict[str, Any]) -> str:
    """A digest of what makes two runs the same: sources, model and options."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _unfinished(out: str, fingerprint: str) -> Run | None:
    """The newest run of this fingerprint without a summary."""
    runs = objects.join(out, "runs")
    files = objects.list_files(runs)
    finished = {file.rsplit("/", 2)[-2] for file in files if file.endswith("/summary.json")}
    candidates = []
    for file in files:
        run_id, name = file.rsplit("/", 2)[-2:]
        if name == "run.json" and run_id not in finished:
            known = read_json(file)
            if known is not None and known.get("fingerprint") == fingerprint:
                candidates.append((str(known["created_at"]), Run(out, run_id, str(known["date"]))))
    return max(candidates, key=lambda item: item[0])[1] if candidates else None


def read_json(location: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none; raises OutputError where there is something else."""
    try:
        value = json.loads(objects.read_bytes(location))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{redact(location)} is damaged ({error}); remove it and run again") from None
    if not isinstance(value, dict):
        raise OutputError(f"{redact(location)} is damaged (no JSON object); remove it and run again")
    return value


def write_json(location: str, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    objects.write_whole(location, json.dumps(value, indent=2, default=str).encode() + b"\n")


def begin(run: Run, description: dict[str, Any]) -> None:
    """Mark the run as working: run.json is there, a former summary is not."""
    location = objects.join(run.folder, "run.json")
    if read_json(location) is None:
        write_json(location, {"run_id": run.run_id, "date": run.date, **description})
    for name in ("summary.json", "failure.json"):
        objects.remove(objects.join(run.folder, name))


def write_failure(run: Run, error: str) -> None:
    """Leave word of why the run broke off, as far as OUT can still be written to."""
    with suppress(Exception):  # OUT itself may be what failed, and the error is reported all the same
        if read_json(objects.join(run.folder, "run.json")) is not None:
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(objects.join(run.folder, "failure.json"), {"error": error, "at": moment})


def write_part(run: Run, rows: pa.Table) -> None:
    """Write finished rows as one part, named after the images in it, so that a repeated task overwrites itself."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    location = objects.join(run.parts_folder, f"{block_digest(rows)}.part")
    objects.write_whole(location, sink.getvalue().to_pybytes())


def read_done(run: Run) -> tuple[pa.Table, pa.Table]:
    """Identities that the run's published files and its parts hold; parts that cannot be read are removed."""
    published = _read_all(published_files(run), IDENTITY)
    parts = []
    files = _parts(run)
    with ThreadPoolExecutor(_THREADS) as threads:
        tables = threads.map(lambda location: read_part(location, IDENTITY), files)
        for location, table in zip(files, tables, strict=True):
            if table is None:
                objects.remove(location)
            else:
                parts.append(table)
    return concat_identities(published), concat_identities(parts)


def read_scored(out: str, model_id: str) -> pa.Table:
    """Identities that any published run in OUT has scored with this model.

    Those whose bytes could not be had are left out: another night may have them.
    """
    root = objects.join(out, "predictions")
    files = objects.list_files(root, ".parquet")

    def read(file: str) -> pa.Table:
        rows = read_columns(file, [*IDENTITY, "status", "model_id"])
        had = pc.invert(pc.is_in(rows.column("status"), pa.array(WITHOUT_BYTES)))
        return rows.filter(pc.and_(had, pc.equal(rows.column("model_id"), model_id))).select(IDENTITY)

    with ThreadPoolExecutor(_THREADS) as threads:
        return concat_identities(threads.map(read, files))


def count_failed(run: Run) -> int:
    """Images without a score in the run's parts and published files, each once."""
    tables = _read_all([*_parts(run), *published_files(run)], [*IDENTITY, "status"])
    failed = (table.filter(pc.not_equal(table.column("status"), "ok")).select(IDENTITY) for table in tables)
    return int(pc.count_distinct(identity_keys(concat_identities(failed))).as_py())


def published_files(run: Run) -> list[str]:
    """The run's files below `predictions/`, by number."""
    folder = objects.join(run.out, "predictions", f"date={run.date}")
    pattern = re.compile(re.escape(run.run_id) + r"-\d{5}\.parquet")
    return [file for file in objects.list_files(folder) if pattern.fullmatch(file.rsplit("/", 1)[-1])]


def publish(run: Run, expected: pa.Table, schema: pa.Schema) -> list[str]:
    """Make the parts' rows visible as table files; `expected` are the planned identities that are not yet published.

    Raises PublishError, and publishes nothing, unless the parts hold a row for each planned image. Rows that an
    interrupted attempt made of images that have changed since are left behind; an image done twice is taken once.
    """
    files = _parts(run)
    counts, kept = _choose_rows(files, expected)
    if len(kept) != expected.num_rows:
        missing = expected.num_rows - len(kept)
        raise PublishError(
            f"{missing:,} of {expected.num_rows:,} planned images have no row: nothing was published; run again"
            " (if this machine is one of several, --out must be a place that all of them write to)"
        )
    taken = [int(file[-len("00000.parquet") : -len(".parquet")]) for file in published_files(run)]
    if not expected.num_rows and taken:
        return []
    written: list[tuple[str, str]] = []
    number = max(taken, default=-1) + 1
    # A night with nothing new has its (empty) table too.
    for rows in _tables(files, counts, kept, schema) if expected.num_rows else [schema.empty_table()]:
        name = f"{run.run_id}-{number + len(written):05d}.parquet"
        hidden = objects.join(run.folder, "publish", f"{name}.whole")
        visible = objects.join(run.out, "predictions", f"date={run.date}", name)
        _write_sorted(rows, hidden)
        written.append((hidden, visible))
    for hidden, visible in written:  # renamed together, so that readers hardly ever see some without the others
        if objects.exists(visible):
            raise PublishError(f"{redact(visible)} is there already, though no listing named it: nothing replaces it")
        objects.move(hidden, visible)
    return [visible for _, visible in written]


def finish(run: Run, summary: dict[str, Any]) -> None:
    """Write the summary, then remove what the run needed only while it worked."""
    write_json(objects.join(run.folder, "summary.json"), summary)
    tidy(run)


def tidy(run: Run) -> None:
    """Remove what a run needs only while it works, and the word of an earlier attempt that broke off."""
    publishing = objects.join(run.folder, "publish")
    failure = objects.join(run.folder, "failure.json")
    for place in (run.parts_folder, run.plan_folder, run.scratch_folder, run.attempts_folder, publishing, failure):
        objects.remove(place)


def count_statuses(run: Run) -> dict[str, int]:
    """Rows by status in all of the run's published files, most frequent first."""
    counts: Counter[str] = Counter()
    for table in _read_all(published_files(run), ["status"]):
        counts.update(values_of(table.column(0)))
    return by_frequency(counts)


def values_of(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands in a column of text."""
    return {str(item["values"]): int(item["counts"]) for item in column.value_counts().to_pylist()}


def by_frequency(counts: dict[str, int]) -> dict[str, int]:
    """The same counts, the most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_columns(location: str, columns: list[str]) -> pa.Table:
    """A few columns of a Parquet file, of which no more is fetched.

    Raises OutputError where it is none of ours.
    """
    if (table := read_part(location, columns)) is None:
        raise OutputError(f"{redact(location)} is no whole table of crackbatch; move it elsewhere and run again")
    return table


def read_part(location: str, columns: list[str]) -> pa.Table | None:
    """A few columns of a part; None for half a file, as a full disk or a broken copy leaves it."""
    try:
        with ranges.open_file(location) as file:
            # In this thread alone: a thread of Arrow's that lets go of a Python file while Python ends can abort it.
            return pq.ParquetFile(file, pre_buffer=False).read(columns, use_threads=False).select(columns)
    except (pa.ArrowInvalid, KeyError):
        return None
    except OSError as error:
        if error.errno is None and error.__cause__ is None:  # Arrow's own, of bytes that it cannot decompress
            return None
        raise


def concat_identities(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of the identities in several, which may be none."""
    empty = pa.schema([(name, pa.string()) for name in IDENTITY]).empty_table()
    return pa.concat_tables([empty, *tables])


def _parts(run: Run) -> list[str]:
    return objects.list_files(run.parts_folder, ".part")


def _read_all(files: list[str], columns: list[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda location: read_columns(location, columns), files))


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
    return pq.read_table(pa.BufferReader(objects.read_bytes(location)))


def _write_sorted(rows: pa.Table, location: str) -> None:
    """Write the rows, most probable cracks first, and never hold more than a row group of them twice."""
    keys = [("crack_probability", "descending", "at_end"), ("image_uri", "ascending", "at_end")]
    order = pc.sort_indices(rows, sort_keys=keys)
    with (
        objects.new_file(location) as file,
        pq.ParquetWriter(file, rows.schema, compression="zstd") as writer,
    ):
        for start in range(0, max(1, len(order)), ROW_GROUP_ROWS):
            writer.write_table(rows.take(order[start : start + ROW_GROUP_ROWS]))
