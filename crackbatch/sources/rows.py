"""Rows of a plan: their columns, and how loose images and members of archives become rows."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.archives.kinds import HEAD_BYTES, kind_inside, why_no_archive
from crackbatch.archives.members import MAX_IMAGE_BYTES, Listing, Member, Object, limited, too_large
from crackbatch.archives.parquet import list_parquet
from crackbatch.archives.tars import list_tar
from crackbatch.archives.zips import list_zip
from crackbatch.errors import CrackbatchError, RunError, SourceError
from crackbatch.storage import atomic, locations, objects, ranges
from crackbatch.storage.redaction import as_text, masked, reason_of
from crackbatch.storage.retry import is_transient, retrying
from crackbatch.storage.urls import is_partial

SCHEMA = pa.schema(
    [
        ("image_uri", pa.string()),
        ("archive", pa.string()),
        ("container", pa.binary()),  # the location to read, in bytes because file names need not be UTF-8
        ("container_version", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("row_group", pa.int32()),
        ("method", pa.string()),  # whole | range | zip-stored | zip-deflated | row | none
        ("size_bytes", pa.int64()),
        ("version", pa.string()),
        ("crc32", pa.uint32()),
        ("status", pa.string()),  # null: to be read; otherwise known from the listing
        ("error", pa.string()),
    ]
)
# (image_uri, version): two rows of a run never share both.
IDENTITY = ["image_uri", "version"]
# The other columns of a manifest have this prefix in a plan, so that a manifest's column `length` or `method` is not
# mistaken for the plan's. Results have them without it.
CARRIED = "carried:"

_BATCH_ROWS = 50_000
_MAX_ERROR = 1_000  # characters
_MOST_TEXT = 1 << 30  # bytes
_SHOWN_NAMES = 3
NO_FILE = "it is a pipe, a device or a folder, not a file"
_PARTIAL = "its URL had a parameter that may be a secret and is not written down; give the whole URL"
_PROCESS_LOCAL = ("memory",)  # other processes cannot see these, so their images are copied to the scratch folder


class Rows:
    """Collects rows of a plan, and converts them to Arrow from time to time to limit the number of Python objects."""

    def __init__(self) -> None:
        self._columns: list[list[Any]] = [[] for _ in SCHEMA.names]
        self._batches: list[pa.RecordBatch] = []

    def add(self, *values: Any) -> None:
        *values, error = values  # type: ignore[assignment]
        values = (*values, None if error is None else error[:_MAX_ERROR])
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) >= _BATCH_ROWS:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA)

    def _flush(self) -> None:
        arrays = [pa.array(values, kind) for values, kind in zip(self._columns, SCHEMA.types, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        for column in self._columns:
            column.clear()


def identity_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Return the identity of each row as one text: version, NUL, URI. A version never contains NUL."""
    version, uri = (rows.column(name).cast(pa.large_string()) for name in ("version", "image_uri"))
    return pc.binary_join_element_wise(version, uri, pa.scalar("\0", pa.large_string()))


def one_each(found: pa.Table, expected: pa.Table) -> np.ndarray:
    """Return the numbers of the rows of `found` that are expected, one for each identity, in ascending order."""
    # Arrow's joins and groups give the same result, but copy every text twice.
    positions = pc.index_in(identity_keys(found), identity_keys(expected).combine_chunks()).fill_null(-1).to_numpy()
    rows = np.flatnonzero(positions >= 0)
    _, first = np.unique(positions[rows], return_index=True)
    return np.sort(rows[first])


def without(rows: pa.Table, others: pa.Table) -> pa.Table:
    """Return the rows whose identity is not among the others."""
    return rows.filter(pc.invert(pc.is_in(identity_keys(rows), identity_keys(others).combine_chunks())))


def in_order(table: pa.Table, order: pa.Array, most_rows: int = 1_000_000) -> Iterator[pa.Table]:
    """Yield the rows with these numbers, as tables of at most `most_rows` rows.

    Arrow's `take` first joins the texts of a column, and a joined column holds at most 2 GiB.
    """
    if is_large := table.nbytes > _MOST_TEXT:
        table, schema = with_large_texts(table), table.schema
        most_rows = max(1, min(most_rows, int(len(table) * (_MOST_TEXT / table.nbytes))))
    for start in range(0, max(1, len(order)), most_rows):
        rows = table.take(order[start : start + most_rows])
        yield from _narrow(rows, schema) if is_large else [rows]


def with_large_texts(table: pa.Table) -> pa.Table:
    """Return the table with texts of 64-bit offsets: joined or without repeats, others end at 2 GiB a column."""
    wide = (field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in table.schema)
    return table.cast(pa.schema(wide))


def _narrow(rows: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows with the texts of the schema, in as many pieces as that takes."""
    try:
        yield rows.cast(schema)
    except pa.ArrowInvalid:
        if len(rows) == 1:
            raise
        yield from _narrow(rows.slice(0, len(rows) // 2), schema)
        yield from _narrow(rows.slice(len(rows) // 2), schema)


def block_digest(rows: pa.Table) -> str:
    """Return a name for a block of rows: a digest of its identities in their order."""
    names = hashlib.sha256()
    for column in IDENTITY:
        for value in rows.column(column).to_pylist():
            names.update(value.encode() + b"\0")
    return names.hexdigest()[:24]


def add_loose(rows: Rows, found: Object, scratch: str | None) -> None:
    uri, location, method = locations.public(found.location), found.location, "whole"
    status, error = found.status, found.error
    if found.size is not None and found.size > MAX_IMAGE_BYTES:
        status, error = too_large(found.size)
    version, container_version = found.version, found.version
    if locations.scheme(location) in _PROCESS_LOCAL and status is None and scratch is not None:
        location, container_version = _copy_to_scratch(found, scratch), ""
    rows.add(
        uri, None, os.fsencode(location), container_version, 0, found.size, None, method, found.size, version, None,
        status, error,
    )  # fmt: skip


def look_at(location: str) -> Object:
    """Look up an object as it is now; its status is set if it cannot be read."""
    if is_partial(location):
        return Object(location, None, "", None, "unreadable", _PARTIAL)
    try:
        if locations.is_local(location):
            status = os.stat(location)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe may wait for ever, and a device may have no end
                return Object(location, None, "", None, "not_an_image", NO_FILE)
            return Object(location, status.st_size, locations.local_version(status), None)
        info = objects.info(location)
        size = info.get("size")
        return Object(location, None if size is None else int(size), locations.version(info), None)
    except FileNotFoundError:
        return Object(location, None, "", None, "missing", f"no such file: {masked(location)}")
    except SourceError as error:
        if locations.scheme(location) in locations.EXTRAS:  # a package is missing for it and many others
            raise
        return Object(location, None, "", None, "unreadable", str(error))
    except Exception as error:  # each cloud library has its own exceptions
        objects.check_credentials(error, location)
        return Object(location, None, "", None, "unreadable", reason_of(error, location))


def list_archive(
    found: Object, wanted: Callable[[str, Listing], bool], scratch: str | None
) -> tuple[pa.Table, Listing] | None:
    """List the images of one archive as rows; return None for a Parquet file without images."""
    listing = Listing()
    shown, location, container_version = masked(found.location), found.location, found.version
    head = _head(found)
    if (kind := kind_inside(head)) is None and (other := why_no_archive(head)) is not None:
        listing.problems.append(f"{shown}: it is {other}")
        return Rows().table(), listing
    found = found._replace(kind=kind or found.kind)
    assert found.kind is not None
    if scratch is not None and locations.scheme(location) in _PROCESS_LOCAL and not found.kind.startswith("tar."):
        location, container_version = _copy_to_scratch(found, scratch), ""
    rows = _ArchiveRows(found, location, container_version)
    is_unpacked = found.kind.startswith("tar.") and scratch is not None
    if is_unpacked:
        assert scratch is not None
        target = locations.join(scratch, f"{_digest(found.location + found.version)}.images")
        rows.container, rows.container_version = os.fsencode(target), ""
    with atomic.new_file(target) if is_unpacked else nullcontext() as spool:
        try:
            rows.fill(_members(found, location, listing, wanted, spool))
        except _NoImageColumn:
            return None
        except CrackbatchError:
            raise
        except _Unread as error:
            listing.problems.append(_why_unread(error, found.location))
        except Exception as error:  # from a reader, for a file that is not an archive
            listing.problems.append(f"cannot be read: {reason_of(error, location)}")
    if inner := [name for name, _ in listing.unopened]:
        names = ", ".join(as_text(name) for name in inner[:_SHOWN_NAMES]) + (", …" if len(inner) > _SHOWN_NAMES else "")
        listing.problems.append(f"{len(inner):,} archives inside it are not opened ({names}): unpack it")
        listing.unopened.clear()
    listing.problems = [f"{shown}: {problem}" for problem in listing.problems]
    listing.notes = [f"{shown}: {note}" for note in listing.notes]
    return _check_unpacked(found, rows.table()) if is_unpacked else rows.table(), listing


def _head(found: Object) -> bytes:
    """Return the first bytes of a file; none if they cannot be read, which will be told when its members are listed."""
    try:
        if locations.is_local(found.location):
            if not os.path.isfile(found.location):  # a pipe can be read once only
                return b""
            with open(found.location, "rb") as file:
                return file.read(HEAD_BYTES)
        filesystem, path = objects.filesystem(found.location)
        return retrying(lambda: ranges.read_range(filesystem, path, 0, min(HEAD_BYTES, found.size or 0)))
    except Exception:  # each storage has its own exceptions
        return b""


def _check_unpacked(found: Object, table: pa.Table) -> pa.Table:
    """Return the rows of an unpacked archive; if the archive has changed since it was listed, they get a status.

    Later only the unpacked images are read, so the version of the archive is not checked again.
    """
    now = look_at(found.location)
    if now.status is None and now.version == found.version:
        return table
    status = now.status or "changed"
    error = now.error or f"{masked(found.location)} changed since it was listed; run again"
    error_column = pc.if_else(pc.is_null(table["status"]), error, table["error"])
    table = table.set_column(table.column_names.index("error"), "error", error_column)
    return table.set_column(table.column_names.index("status"), "status", pc.fill_null(table["status"], status))


class _NoImageColumn(Exception):
    pass


class _Unread(Exception):
    """The bytes of an archive could not be read from its storage; damaged bytes raise other exceptions."""


@contextmanager
def _asking_storage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each storage has its own exceptions
        raise _Unread from error


class _File:
    """The file of an archive; storage errors become `_Unread`, because readers mistake any OSError for damage."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _asking_storage():
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _why_unread(error: _Unread, location: str) -> str:
    """Return the problem of an archive that cannot be read; raise RunError if a remote storage's error can pass."""
    cause = error.__cause__
    assert cause is not None
    objects.check_credentials(cause, location)
    why = reason_of(cause, location)
    if not locations.is_local(location) and is_transient(cause):
        raise RunError(f"cannot read {masked(location)}: the storage fails ({why}); run again") from cause
    return f"cannot be read: {why}"


def _members(
    found: Object,
    location: str,
    listing: Listing,
    wanted: Callable[[str, Listing], bool],
    spool: IO[bytes] | None,
) -> Iterator[Member]:
    def want(name: str) -> bool:
        return wanted(name, listing)

    assert found.kind is not None
    with _asking_storage():
        opened = ranges.open_file(location)
    with opened:
        if not found.kind.startswith("tar."):
            with _asking_storage():
                opened.seek(0)  # so that a file that cannot seek is not reported as damaged later
        file = cast(IO[bytes], _File(opened))
        members: Iterator[Member] | None
        if found.kind == "zip":
            members = list_zip(file, listing, want)
        elif found.kind == "parquet":
            members = list_parquet(file, listing)
            if members is None:
                raise _NoImageColumn
        else:
            members = list_tar(file, found.kind, listing, want, spool, found.size)
        yield from limited(members, found.size, listing)


class _ArchiveRows:
    """The rows of one archive: its members with their URIs and versions."""

    def __init__(self, found: Object, location: str, container_version: str) -> None:
        assert found.kind is not None
        self.container, self.container_version = os.fsencode(location), container_version
        self._archive = locations.public(found.location)
        self._version = found.version
        self._protocol = "tar" if found.kind.startswith("tar") else found.kind
        self._rows = Rows()
        self.names: list[str] = []

    def fill(self, members: Iterable[Member]) -> None:
        """Add members; a second member with the same name is another image, with the version `…#2`."""
        seen: dict[str, int] = {}
        for member in members:
            name = as_text(member.name)
            number = seen[name] = seen.get(name, 0) + 1
            version = self._version if number == 1 else f"{self._version}#{number}"
            self._rows.add(
                f"{self._protocol}://{name}::{self._archive}", self._archive, self.container,
                self.container_version, _int64(member.start), _int64(member.length), member.row_group, member.method,
                _int64(member.size_bytes), version, member.crc32, member.status, member.error,
            )  # fmt: skip

    def table(self) -> pa.Table:
        return self._rows.table()


def _int64(value: int | None) -> int | None:
    """Return a number from an archive's directory, limited to the values that a column can hold."""
    return None if value is None else max(0, min(value, 2**63 - 1))


def _copy_to_scratch(found: Object, scratch: str) -> str:
    target = locations.join(scratch, f"{_digest(found.location + found.version)}.copy")
    atomic.write_whole(target, objects.read_bytes(found.location))
    return target


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
