"""Images in a column of a Parquet file: listing them, and opening each by its own URL.

With `ParquetFileSystem`, fsspec opens the `image_uri` of such an image, `parquet://COLUMN/ROW::FILE`, just as it opens
the URIs of zip and tar members. fsspec finds the class through the package's entry point.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.archive import AbstractArchiveFileSystem

from crackbatch.archives.members import Listing, Member

# Columns of images in published data sets: img2dataset, webdataset, Hugging Face and others.
_IMAGE_NAME = re.compile(r"(image|img|photo|picture|pic|jpe?g|png|webp|tiff?)([._ -]?(bytes|data|content|raw))?$", re.I)


def image_column(schema: pa.Schema) -> str | None:
    """Return the column with encoded images, None if there is none or if it is not clear which it is.

    It is `image` or `bytes`, else a struct<bytes, path>, else a binary column with the name of an image, else the only
    binary column.
    """
    own = [name for name in ("image", "bytes") if name in schema.names and _holds_bytes(schema.field(name).type)]
    columns = binary_columns(schema)
    structs = [name for name in columns if pa.types.is_struct(schema.field(name).type)]
    named = [name for name in columns if _IMAGE_NAME.match(name)]
    for found in (own, structs):
        if found:
            return found[0]
    return next((found[0] for found in (named, columns) if len(found) == 1), None)


def binary_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that may hold encoded images: binary, or a struct<bytes, path>."""
    return [str(field.name) for field in schema if _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def list_parquet(file: IO[bytes], listing: Listing) -> Iterator[Member] | None:
    """Yield a member `column/row` for each row; return None if the Parquet file has no column that can hold images."""
    parquet = pq.ParquetFile(file)
    column, columns = image_column(parquet.schema_arrow), binary_columns(parquet.schema_arrow)
    if not columns:
        return None
    if column is None:
        listing.problems.append(f"any of its columns {', '.join(columns)} may hold the images: rename one to image")
        return iter(())
    if column not in ("image", "bytes"):
        listing.notes.append(f"the images are read from its column {column}")
    return _parquet_members(parquet.metadata, column, listing) if listing.accepts(column) else iter(())


def _parquet_members(metadata: pq.FileMetaData, column: str, listing: Listing) -> Iterator[Member]:
    row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if _is_empty(group, column):
            listing.pass_over("rows without an image", group.num_rows)
            row += group.num_rows
            continue
        for _ in range(group.num_rows):
            yield Member(f"{column}/{row}", row, None, "row", None, row_group=number)
            row += 1


def _is_empty(group: pq.RowGroupMetaData, column: str) -> bool:
    """Whether all cells of a row group are null by its statistics. A path without bytes is a missing image."""
    return all(
        leaf.is_stats_set and leaf.statistics.has_null_count and leaf.statistics.null_count == leaf.num_values
        for leaf in leaves_of(group, column, "bytes", "path")
    )


def leaves_of(group: pq.RowGroupMetaData, column: str, *names: str) -> list[pq.ColumnChunkMetaData]:
    """Return a column of a row group, or those of its fields that have these names."""
    leaves = [group.column(index) for index in range(group.num_columns)]
    return [leaf for leaf in leaves if leaf.path_in_schema in (column, *(f"{column}.{name}" for name in names))]


class ParquetFileSystem(AbstractArchiveFileSystem):  # type: ignore[misc]
    """A read-only filesystem; `fo` is the URL of the Parquet file or an open file."""

    root_marker = ""
    protocol = "parquet"
    cachable = False

    def __init__(
        self,
        fo: Any = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(self, **kwargs)
        if isinstance(fo, str):
            fo = fsspec.open(fo, mode="rb", protocol=target_protocol, **(target_options or {})).open()
        self._parquet = pq.ParquetFile(fo)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        if mode != "rb":
            raise NotImplementedError("images in Parquet files can only be read")
        column, _, row = path.strip("/").rpartition("/")
        if column not in self._parquet.schema_arrow.names or not row.isdecimal():
            raise FileNotFoundError(path)
        first = 0
        for group in range(self._parquet.metadata.num_row_groups):
            num = self._parquet.metadata.row_group(group).num_rows
            if int(row) < first + num:
                cell = self._parquet.read_row_group(group, [column]).column(0)[int(row) - first].as_py()
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if data is None:
                    break
                return io.BytesIO(data)
            first += num
        raise FileNotFoundError(path)
