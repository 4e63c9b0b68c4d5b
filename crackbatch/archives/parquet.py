"""Images in a column of a Parquet file: listing them, reading them, and opening each by its own URL.

With `ParquetFileSystem`, fsspec opens the `image_uri` of such an image, `parquet://COLUMN/ROW::FILE`, just as it opens
the URIs of zip and tar members. fsspec finds the class through the package's entry point.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.archive import AbstractArchiveFileSystem

from crackbatch.archives.members import MAX_BLOCK_BYTES, MAX_IMAGE_BYTES, Content, Listing, Member, too_large

_PARQUET_ROWS = 32
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
    return _parquet_members(parquet.metadata, column)


def _parquet_members(metadata: pq.FileMetaData, column: str) -> Iterator[Member]:
    row = 0
    for group in range(metadata.num_row_groups):
        for _ in range(metadata.row_group(group).num_rows):
            yield Member(f"{column}/{row}", row, None, "row", None, row_group=group)
            row += 1


def parquet_cells(parquet: pq.ParquetFile, rows: list[dict[str, Any]]) -> Iterator[Content]:
    """Yield the cell of each row from its row group; a row that its row group does not have is `corrupt`."""
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
            yield Content(None, "corrupt", f"row group {group} has fewer rows than the footer of the file says")


def _num_at_once(parquet: pq.ParquetFile, group: int) -> int:
    """Return how many rows of a row group to decode together: fewer if their mean size is large."""
    metadata = parquet.metadata.row_group(group)
    return max(1, min(_PARQUET_ROWS, int(MAX_BLOCK_BYTES * metadata.num_rows // max(metadata.total_byte_size, 1))))


def _cell(scalar: pa.Scalar) -> Content:
    path = None
    if pa.types.is_struct(scalar.type):
        path = scalar["path"].as_py() if scalar.is_valid and "path" in scalar else None
        scalar = scalar["bytes"] if scalar.is_valid else pa.scalar(None, pa.binary())
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        where = f"; its path {path!r} points outside the Parquet file" if path else ""
        return Content(None, "missing", f"the row has no bytes{where}")
    if len(scalar.as_buffer()) > MAX_IMAGE_BYTES:
        return Content(None, *too_large(len(scalar.as_buffer())))
    return Content(bytes(scalar.as_buffer()))


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
