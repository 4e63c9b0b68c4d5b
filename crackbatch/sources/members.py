"""What is known of an image before it is decoded: the file or archive it lies in, its place there, and its bytes.

A member is a byte range of its archive, plus how to undo what was done to it, found without reading images. Damaged
archives give what can still be found, and say what is missing through `Listing.problems`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

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

ARCHIVE_SCHEMES = ("zip", "tar", "parquet")  # of images in archives, as the table names them
# No photograph is encoded larger than this; a directory that says so is damaged or hostile.
MAX_IMAGE_BYTES = 1 << 30
# Images travel in blocks of about this many encoded bytes.
MAX_BLOCK_BYTES = 32 << 20
LINKS = "links and special files in archives"  # what they are counted as


class Object(NamedTuple):
    """A file or object: where it lies, and as what it was listed; `kind` is an archive's, None for a loose image."""

    location: str
    size: int | None
    version: str
    kind: str | None
    status: str | None = None
    error: str | None = None


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


@dataclass(slots=True)
class Content:
    """The encoded bytes of one image, or its status and the cause."""

    data: bytes | None = None
    status: str | None = None
    error: str | None = None


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
