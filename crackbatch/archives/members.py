"""What is known about an image before it is decoded: its file or archive, its place there, and its bytes.

A member is a byte range of its archive and the method to unpack it. Members are found without reading images. Listing
a damaged archive gives the members that can still be found, and `Listing.problems` says what is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from crackbatch.storage.redaction import printable
from crackbatch.storage.urls import MEMBERS

ARCHIVE_SCHEMES = MEMBERS
# No photo has more encoded bytes than this. An archive directory that gives a larger size is damaged or malicious.
MAX_IMAGE_BYTES = 1 << 30
# Images are read and passed on in blocks of about this many encoded bytes.
MAX_BLOCK_BYTES = 32 << 20
_ABSOLUTE = re.compile(r"::(?=/|~|[a-z][a-z0-9+.-]*://)")
# What one archive may announce: this many images, and beyond them one for each few bytes of its file. More would only
# take memory. Names are limited as in the systems (PATH_MAX of Linux).
_MOST_MEMBERS, _LEAST_BYTES = 100_000, 16
_MOST_NAMES = 64 << 20  # characters of all its names, and 16 for each byte of its file
MAX_NAME_BYTES = 4096
LINKS = "links and special files in archives"  # the name under which they are counted
# Folders in which systems keep thumbnails, deleted files and their own data: Synology, QNAP, Windows, macOS, Linux.
_SYSTEM_FOLDERS = frozenset(
    ["@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "$recycle.bin", "recycler",
     "recycled", "system volume information", "__macosx", "network trash folder", "temporary items", "lost+found"]
)  # fmt: skip


class Object(NamedTuple):
    """A file or object as it was listed; `kind` is the kind of archive, None for a loose image."""

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
    """The encoded bytes of one image, or its status and the reason."""

    data: bytes | None = None
    status: str | None = None
    error: str | None = None


@dataclass
class Listing:
    """What a listing found besides images."""

    passed_over: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how something was understood
    unopened: dict[tuple[str, str], int] = field(default_factory=dict)  # (archive, why) → its number of files

    def leave_unopened(self, archive: str, why: str) -> None:
        """Note a file that may hold images and is not opened; the volumes of a split archive count together."""
        if (archive, why) in self.unopened or len(self.unopened) < 1000:
            self.unopened[archive, why] = self.unopened.get((archive, why), 0) + 1
        else:
            self.pass_over("other archives that are not opened")

    def accepts(self, name: str) -> bool:
        """Whether the name of a member is short enough; a longer one is a problem, told once for each archive."""
        if len(name) <= MAX_NAME_BYTES and len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES:
            return True
        problem = f"members whose names have more than {MAX_NAME_BYTES:,} bytes are not read"
        if problem not in self.problems:
            self.problems.append(problem)
        return False

    def pass_over(self, reason: str, count: int = 1) -> None:
        """Count files that are not images. Reasons can come from file names, so their number is limited."""
        reason = printable(reason.encode("ascii", "backslashreplace").decode())
        if reason not in self.passed_over and len(self.passed_over) >= 100:
            reason = "others"
        self.passed_over[reason] += count


def split_uri(uri: str) -> tuple[str, str, str] | None:
    """Return (scheme, member, archive) of the URI of an image in an archive, None for another URI.

    Names can contain `::`. The archive begins behind the last one before an absolute location, or behind the last.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in ARCHIVE_SCHEMES or "::" not in rest:
        return None
    absolute = list(_ABSOLUTE.finditer(rest))
    at = absolute[-1].start() if absolute else rest.rindex("::")
    return scheme, rest[:at], rest[at + 2 :]


def member_path(name: str) -> str:
    """Return the name of a member with `/` between its folders; some programs for Windows write `\\`."""
    return name if "/" in name else name.replace("\\", "/")


def is_hidden(name: str) -> bool:
    """Whether a part of a relative name starts with a dot or is the name of a system's own folder."""
    parts = name.split("/")
    return any((part[:1] == "." and part not in (".", "..")) or part.lower() in _SYSTEM_FOLDERS for part in parts)


def limited(members: Iterable[Member], size: int | None, listing: Listing) -> Iterator[Member]:
    """Yield the members of an archive with a file of `size` bytes, up to the number that it can really hold."""
    most = max(_MOST_MEMBERS, (size or 0) // _LEAST_BYTES)
    characters = _MOST_NAMES + _LEAST_BYTES * (size or 0)
    for number, member in enumerate(members):
        characters -= len(member.name)
        if characters < 0:
            listing.problems.append("its names have more characters than the names of a file of its size")
            return
        if number == most:
            listing.problems.append(f"it announces more than {most:,} images, which a file of its size cannot hold")
            return
        yield member


def too_large(size: int) -> tuple[str, str]:
    """Return the status and error of a member with more encoded bytes than allowed."""
    return "too_large", f"it has {size:,} encoded bytes, more than the {MAX_IMAGE_BYTES:,} allowed"
