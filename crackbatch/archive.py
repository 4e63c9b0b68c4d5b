"""What lies in an archive and where: what is known of a member, of whatever kind its archive is, and those of Parquet.

A member is a byte range of its archive, plus how to undo what was done to it, found without reading images. Damaged
archives give what can still be found, and say what is missing through `Listing.problems`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

# Suffix → kind. Longer suffixes come first: ".tar.gz" before ".gz" could ever be asked for.
KINDS = {
    ".tar.gz": "tar.gz",
    ".tar.bz2": "tar.bz2",
    ".tar.xz": "tar.xz",
    ".tgz": "tar.gz",
    ".tbz2": "tar.bz2",
    ".tbz": "tar.bz2",
    ".txz": "tar.xz",
    ".tar": "tar",
    ".zip": "zip",
    ".parquet": "parquet",
}

# No photograph is encoded larger than this; a directory that says so is damaged or hostile.
MAX_IMAGE_BYTES = 1 << 30
LINKS = "links and special files in archives"  # what they are counted as


class Member(NamedTuple):
    """One image in an archive; `start` and `length` are bytes (for `method` "row": a row number, and null)."""

    name: str
    start: int
    length: int | None
    method: str
    size_bytes: int | None
    crc32: int | None = None
    status: str | None = None  # known before reading: encrypted, too_large, …
    error: str | None = None
    row_group: int | None = None


@dataclass
class Listing:
    """What was met while listing besides images."""

    passed_over: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, count: int = 1) -> None:
        """Count what is no image. Names come from outside, so their number is bounded."""
        reason = reason.encode("ascii", "backslashreplace").decode()
        if reason not in self.passed_over and len(self.passed_over) >= 100:
            reason = "others"
        self.passed_over[reason] += count


def kind_of(name: str) -> str | None:
    """The kind of archive that a file name promises, if any."""
    lower = name.lower()
    return next((kind for suffix, kind in KINDS.items() if lower.endswith(suffix)), None)


def is_hidden(name: str) -> bool:
    """Whether a relative name has a part that starts with a dot or is macOS's `__MACOSX`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def too_large(size: int) -> tuple[str, str]:
    """Status and error of a member with more encoded bytes than an image may have."""
    return "too_large", f"{size:,} encoded bytes are more than the {MAX_IMAGE_BYTES:,} allowed"


def image_column(schema: pa.Schema) -> str | None:
    """The column of a Parquet file that holds encoded images: `bytes`, `image`, or any struct<bytes, path>; or None."""
    for name in ("image", "bytes", *schema.names):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
            return str(name)
        if name in ("image", "bytes") and _is_binary(kind):
            return str(name)
    return None


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def list_parquet(file: IO[bytes]) -> Iterator[Member] | None:
    """A member for each row of a Parquet file with an image column, named `column/row`; None without one."""
    parquet = pq.ParquetFile(file)
    column = image_column(parquet.schema_arrow)
    if column is None:
        return None
    return _parquet_members(parquet.metadata, column)


def _parquet_members(metadata: pq.FileMetaData, column: str) -> Iterator[Member]:
    row = 0
    for group in range(metadata.num_row_groups):
        for _ in range(metadata.row_group(group).num_rows):
            yield Member(f"{column}/{row}", row, None, "row", None, row_group=group)
            row += 1
