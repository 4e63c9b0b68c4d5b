"""`parquet://COLUMN/ROW::FILE`: an fsspec filesystem whose files are the images in a Parquet file's column.

It makes the `image_uri` of such an image open by itself, as those of zip and tar members do. fsspec finds it through
the package's entry point.
"""

from __future__ import annotations

import io
from typing import Any

import fsspec
import pyarrow.parquet as pq
from fsspec.archive import AbstractArchiveFileSystem


class ParquetFileSystem(AbstractArchiveFileSystem):  # type: ignore[misc]
    """Read-only; `fo` is the URL of the Parquet file or an open file."""

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
