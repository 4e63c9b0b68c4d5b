"""Reads manifests and plans their images. A manifest is a CSV or Parquet table with a column `image_uri`."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from crackbatch.archives.kinds import kind_of
from crackbatch.archives.members import Listing, Object, split_uri
from crackbatch.errors import SourceError
from crackbatch.sources.prefixes import Prefixes
from crackbatch.sources.rows import CARRIED, Rows, add_loose, in_order, list_archive, look_at
from crackbatch.storage import locations, ranges
from crackbatch.storage.redaction import as_text, from_text, masked, redact
from crackbatch.storage.urls import with_digest

URI_COLUMN = "image_uri"
# The names that other tools give this column, the best first.
NAME_COLUMNS = (URI_COLUMN, "image", "filename", "file_name", "file", "path", "uri", "url")
# If a quote is not closed, everything after it would become one cell.
_MAX_LINE_CHARACTERS = 1 << 20
_SEPARATOR_LINE = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([,;\t|])"?\r?\n?', re.IGNORECASE)
_INDEX = re.compile(r"__index_level_\d+__")  # the numbers of rows, which pandas writes beside the columns
# What a manifest may hold. Cells that repeat take no bytes in Parquet, but memory here.
_MOST_VALUES, _VALUES_PER_BYTE, _MOST_BYTES = 64_000_000, 64, 4 << 30
_MAX_URI, _SHOWN_URI = 8_192, 1_000  # characters
# What spreadsheets and mails leave around a cell, also characters that nobody sees.
_AROUND = " \t\r\n\v\f<>\u00a0\u200b\u200c\u200d\u2060\ufeff"
_NEARLY_URL = re.compile(r"[a-z][a-z0-9+.-]{1,30}:/|[^\s/:]+:[^\s/@]+@|[?&;][\w-]+=", re.IGNORECASE)
_MOST_COLUMNS, _SNIFFED = 10_000, 4_096
_LOOKED_AT = 10_000
_LOOKING_THREADS = 8


@dataclass(frozen=True)
class Manifest:
    """A table with a column `image_uri`; its other columns are copied into the results."""

    location: str
    table: pa.Table


def read_manifest(location: str) -> Manifest | None:
    """Read the manifest at a location; return None for a Parquet file that holds images instead.

    Raises SourceError if the file is not a manifest, and the exceptions of a remote storage that fails.
    """
    shown = masked(location)
    try:
        if locations.file_name(location).lower().endswith(".parquet"):
            with ranges.open_file(location) as file:
                found = _read_parquet(file, shown)
            if found is None:
                return None
            table = found
        else:
            data = ranges.read_whole(location, _MOST_BYTES)
            if len(data) > _MOST_BYTES:
                raise SourceError(f"manifest {shown} has more than {_MOST_BYTES:,} bytes; split it")
            table = _read_csv(data, shown)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and not locations.is_local(location):
            raise
        raise SourceError(f"{shown} cannot be read as a manifest: {error}") from None
    table = table.cast(pa.schema([_plain(field) for field in table.schema]))
    table = table.drop_columns([name for name in table.column_names if _INDEX.fullmatch(name)])
    table = _with_uris(table)
    _check_manifest(table, shown)
    uris = table.column(URI_COLUMN).cast(pa.string())
    return Manifest(location, table.set_column(table.column_names.index(URI_COLUMN), URI_COLUMN, uris))


def _with_uris(table: pa.Table) -> pa.Table:
    """Return a table whose only column with a name like `filename` is called `image_uri`, if none is."""
    alike = [name for name in table.column_names if name.strip().lower() in NAME_COLUMNS]
    if URI_COLUMN in table.column_names or len(alike) != 1:
        return table
    return table.rename_columns([URI_COLUMN if name == alike[0] else name for name in table.column_names])


def _plain(field: pa.Field) -> pa.Field:
    """Return the field of a column as it is carried: without a dictionary, as files of one table can differ in them.

    Texts have 64-bit offsets, so that a column of a table may hold more than two gigabytes of them.
    """
    kind = _value_type(field)
    return field.with_type(pa.large_string() if _is_text(kind) else kind)


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_dictionary(field.type) else field.type


def _read_parquet(file: IO[bytes], shown: str) -> pa.Table | None:
    """Read a Parquet manifest; return None if it has no image_uri. Raises SourceError if it unpacks to too much.

    Texts are read as dictionaries: a text that many rows share is in memory once until it is known how large it is.
    """
    schema, size = pq.ParquetFile(file).schema_arrow, file.seek(0, io.SEEK_END)
    if URI_COLUMN not in schema.names:
        return None
    texts = [field.name for field in schema if _is_text(_value_type(field)) or pa.types.is_binary(_value_type(field))]
    parquet = pq.ParquetFile(file, read_dictionary=texts)
    groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    widths = sum(field.type.byte_width for field in schema if pa.types.is_fixed_size_binary(field.type))
    if widths * parquet.metadata.num_rows > _MOST_BYTES:
        raise SourceError(f"manifest {shown} holds more than {_MOST_BYTES:,} bytes; split it")
    num_values = sum(group.column(leaf).num_values for group in groups for leaf in range(group.num_columns))
    if num_values > max(_MOST_VALUES, _VALUES_PER_BYTE * size):
        raise SourceError(f"manifest {shown} announces {num_values:,} cells, which a file of its size cannot hold")
    table = parquet.read()
    unpacked = 0
    for name in texts:
        for chunk in table.column(name).chunks:
            lengths = pc.binary_length(chunk.dictionary if isinstance(chunk, pa.DictionaryArray) else chunk)
            if (pc.max(lengths).as_py() or 0) > _MAX_LINE_CHARACTERS:
                raise SourceError(
                    f"manifest {shown}: a cell of column {name} has more than {_MAX_LINE_CHARACTERS:,} bytes;"
                    " shorten it"
                )
            taken = lengths.take(chunk.indices) if isinstance(chunk, pa.DictionaryArray) else lengths
            unpacked += pc.sum(taken).as_py() or 0
    if unpacked > _MOST_BYTES:
        raise SourceError(f"manifest {shown} holds {unpacked:,} bytes of text, more than {_MOST_BYTES:,}; split it")
    return table


def _check_manifest(table: pa.Table, shown: str) -> None:
    if URI_COLUMN not in table.column_names:
        columns = ", ".join(table.column_names) or "none"
        raise SourceError(f"manifest {shown} has no column {URI_COLUMN!r} (its columns: {columns}); rename one of them")
    if repeated := [name for name, count in Counter(table.column_names).items() if count > 1]:
        mend = f"{repeated[0]!r}; rename one" if repeated[0] else "which is empty; name them or remove them"
        raise SourceError(f"manifest {shown} has two columns with the same name, {mend}")
    if empty := table.column(URI_COLUMN).null_count:
        raise SourceError(f"manifest {shown}: {empty:,} rows have no {URI_COLUMN}; fill it in or remove these rows")
    if not pa.types.is_null(table.schema.field(URI_COLUMN).type) and not _is_text(table.schema.field(URI_COLUMN).type):
        kind = table.schema.field(URI_COLUMN).type
        raise SourceError(f"manifest {shown}: {URI_COLUMN} is {kind}, not text; give paths or URLs of images")
    for name in (field.name for field in table.schema if _is_text(field.type)):
        try:
            table.column(name).validate(full=True)
        except pa.ArrowInvalid:
            raise SourceError(f"manifest {shown}: column {name} is not valid UTF-8; write its text as UTF-8") from None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _read_csv(data: bytes, shown: str) -> pa.Table:
    """Read a CSV. Its header shows the separator: spreadsheets in many countries write semicolons."""
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"manifest {shown} is not valid UTF-8 (byte {error.start:,}); save it as CSV UTF-8") from None
    if separator := _SEPARATOR_LINE.match(data):  # Excel reads and writes it
        data = data[separator.end() :]
    first_line = re.split(b"[\r\n]", data[:65_536], maxsplit=1)[0].decode("utf-8-sig", "replace")
    if not first_line.strip():
        raise SourceError(f"manifest {shown} is empty; its first line must name the columns, including {URI_COLUMN}")
    try:
        delimiter = separator[1].decode() if separator else csv.Sniffer().sniff(first_line[:_SNIFFED], ",;\t").delimiter
    except csv.Error:
        delimiter = ","
    if (num := first_line.count(delimiter) + 1) > _MOST_COLUMNS:
        raise SourceError(f"manifest {shown} has {num:,} columns, more than {_MOST_COLUMNS:,}; leave some out")
    _check_lines(data, delimiter, shown)
    # Large enough for the longest line: a character has at most four bytes.
    read = pyarrow.csv.ReadOptions(block_size=8 * _MAX_LINE_CHARACTERS)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(io.BytesIO(data), read, parse) as reader:
        names = reader.schema.names
    # Keep cells as text: guessed types would turn pier 007 into 7, and could differ between the files of two nights.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = pyarrow.csv.read_csv(io.BytesIO(data), read, parse, convert)
    nulls = [column.is_null() for column in table.columns]
    return table.filter(pc.invert(functools.reduce(pc.and_, nulls)))  # spreadsheets leave empty rows


def _check_lines(data: bytes, delimiter: str, shown: str) -> None:
    """Raise SourceError if a quote is not closed: Arrow would silently read up to the next quote as one cell."""
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE_CHARACTERS))
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    line = 1  # where the next row begins
    try:
        for cells in reader:
            if sum(map(len, cells)) > _MAX_LINE_CHARACTERS:
                raise csv.Error("the line is too long")
            line = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(
            f"manifest {shown}, line {line}: {error}; close its quotes, double each quote inside them, and shorten"
            f" lines of more than {_MAX_LINE_CHARACTERS:,} characters"
        ) from None


def plan_manifest(manifest: Manifest, listing: Listing, scratch: str | None, prefixes: Prefixes) -> pa.Table:
    """Plan the images of a manifest, with its other columns.

    An image that does not exist has the status `missing`. One that is not below `prefixes` is not even looked up.
    """
    folder = locations.without_query(manifest.location).rsplit("/", 1)[0]
    others = manifest.table.drop_columns([URI_COLUMN])
    loose: list[tuple[int, str]] = []
    inside: dict[str, dict[str, list[int]]] = {}  # archive → member name → manifest rows
    for row, uri in enumerate(manifest.table.column(URI_COLUMN).to_pylist()):
        if len(uri) > _MAX_URI:
            loose.append((row, uri))
        elif inner := split_uri(uri):
            _, name, container = inner
            inside.setdefault(_absolute(container, folder, prefixes), {}).setdefault(name, []).append(row)
        else:
            loose.append((row, _absolute(uri, folder, prefixes)))
    rows, order = Rows(), []
    with ThreadPoolExecutor(_LOOKING_THREADS) as threads:
        for start in range(0, len(loose), _LOOKED_AT):  # an image that waits for a thread takes 2 kB of memory
            some = loose[start : start + _LOOKED_AT]
            for (row, _), found in zip(some, threads.map(lambda item: _look_at(item[1], prefixes), some), strict=True):
                add_loose(rows, found, scratch)
                order.append(row)
    tables = [rows.table()]
    for container, names in inside.items():
        table = _pick_members(container, names, listing, scratch, prefixes)
        lines = [names[_member_name(uri)] for uri in table.column("image_uri").to_pylist()]
        tables.append(table.take(np.repeat(np.arange(len(lines)), [len(each) for each in lines])))
        order.extend(itertools.chain.from_iterable(lines))
    planned = pa.concat_tables(tables)
    carried = pa.concat_tables(in_order(others, pa.array(order, pa.int64())))
    for column in carried.schema:
        planned = planned.append_column(column.with_name(CARRIED + column.name), carried.column(column.name))
    return planned


def _absolute(uri: str, folder: str, prefixes: Prefixes) -> str:
    if (plain := uri.strip(_AROUND)) != uri and not os.path.lexists(os.path.join(folder, uri)):
        uri = plain
    is_relative = locations.is_local(uri) and "://" not in uri and not uri.startswith(("/", "~", "file:/"))
    location = locations.normalize(locations.join(folder, uri) if is_relative else uri)
    # As it is, from a row of the table, or written on Windows. With prefixes, nobody may ask what exists elsewhere.
    if "\\" in uri and locations.is_local(location) and not prefixes:
        spellings = (location, from_text(location), location.replace("\\", "/"))
        return next(filter(os.path.lexists, spellings), location)
    return location


def _look_at(location: str, prefixes: Prefixes) -> Object:
    if len(location) > _MAX_URI:
        short = with_digest(f"{masked(location)[:_SHOWN_URI]}…", location)
        return Object(short, None, "", None, "unreadable", f"its path or URL has more than {_MAX_URI:,} characters")
    if locations.is_local(location) and _NEARLY_URL.search(location) and not os.path.lexists(location):
        told = "it is neither a file nor a URL; write URLs as https://host/path"
        return Object(redact(location), None, "", None, "unreadable", told)
    why = prefixes.refusal(location)
    return look_at(location) if why is None else Object(location, None, "", None, "unreadable", why)


def _pick_members(
    container: str, names: Collection[str], listing: Listing, scratch: str | None, prefixes: Prefixes
) -> pa.Table:
    found = _look_at(container, prefixes)._replace(kind=kind_of(locations.file_name(container)))
    if found.status is None and found.kind is None:
        found = found._replace(status="unreadable", error=f"{masked(container)} is not named like an archive")
    rows = Rows()
    present: set[str] = set()
    if found.status is None:

        def wanted(name: str, _: Listing) -> bool:
            return as_text(name) in names

        result = list_archive(found, wanted, scratch)
        if result is not None:
            table, own = result
            listing.problems.extend(own.problems)
            listing.notes.extend(own.notes)
            if own.problems:  # a member that was not found may still be in it
                found = found._replace(status="unreadable", error=own.problems[0])
            keep = [_member_name(uri) in names for uri in table.column("image_uri").to_pylist()]
            table = table.filter(pa.array(keep, pa.bool_()))
            present = {_member_name(uri) for uri in table.column("image_uri").to_pylist()}
    protocol = "tar" if (found.kind or "").startswith("tar") else found.kind or "zip"
    shown = locations.public(container)
    for name in names:
        if name not in present:
            rows.add(
                f"{protocol}://{as_text(name)}::{shown}", shown, os.fsencode(container), "",
                0, 0, None, "none", None, "", None, found.status or "missing",
                found.error or f"{masked(container)} has no member {name}",
            )  # fmt: skip
    return pa.concat_tables([table, rows.table()]) if present else rows.table()


def _member_name(uri: str) -> str:
    inner = split_uri(uri)
    assert inner is not None
    return inner[1]
