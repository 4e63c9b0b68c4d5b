"""Kinds of archives: their names, their first bytes, and what to do with those that are not opened."""

from __future__ import annotations

import re
import tarfile

# Suffix → kind. The first suffix that matches counts.
_SUFFIXES = {
    ".tar.gz": "tar.gz",
    ".tar.bz2": "tar.bz2",
    ".tar.xz": "tar.xz",
    ".tar.zst": "tar.zst",
    ".tgz": "tar.gz",
    ".taz": "tar.gz",
    ".tbz2": "tar.bz2",
    ".tbz": "tar.bz2",
    ".tb2": "tar.bz2",
    ".txz": "tar.xz",
    ".tzst": "tar.zst",
    ".tar": "tar",
    ".zip": "zip",
    ".parquet": "parquet",
}
KINDS = frozenset(_SUFFIXES.values())
HEAD_BYTES = tarfile.BLOCKSIZE

_STARTS = (  # a compressed file is taken for a compressed tar
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PK\x07\x08", "zip"),
    (b"\x1f\x8b", "tar.gz"),
    (b"BZh", "tar.bz2"),
    (b"\xfd7zXZ\x00", "tar.xz"),
    (b"\x28\xb5\x2f\xfd", "tar.zst"),
    (b"PAR1", "parquet"),
)
_PACK = "unpack it, or pack its images as .zip or .tar"
_LOAD = "download it again"
_OTHER_STARTS = (
    (b"Rar!", f"a RAR archive: {_PACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive: {_PACK}"),
    (b"MSCF", f"a cabinet archive: {_PACK}"),
    (b"LZIP", f"an lzip file: {_PACK}"),
    (b"\x04\x22\x4d\x18", f"an lz4 file: {_PACK}"),
    (b"\x1f\x9d", f"a file of Unix compress: {_PACK}"),
    (b"SQLite format 3", "a SQLite database, not an archive"),
    (b"%PDF", "a PDF, not an archive: give its images"),
    (b"version https://git-lfs", "a pointer of Git LFS, not an archive: run git lfs pull"),
    (b"<!doctype html", f"a web page, not an archive, such as a server's question for a login: {_LOAD}"),
    (b"<html", f"a web page, not an archive, such as a server's question for a login: {_LOAD}"),
    (b"<?xml", f"an XML text, not an archive, such as a server's error message: {_LOAD}"),
    (b"<error", f"an XML text, not an archive, such as a server's error message: {_LOAD}"),
    (b"{", f"a JSON text, not an archive, such as a server's error message: {_LOAD}"),
)

VOLUME = "it is one volume of a split archive: join them first"
ZIP_VOLUME = f"{VOLUME} (zip -s 0 NAME.zip --out whole.zip)"
_CAT_JOIN = f"{VOLUME} (cat NAME.* > whole)"
# Names of archives that are not opened, and what to do with them. The group is the name of the whole archive.
_UNOPENED = tuple(
    (re.compile(pattern), mend)
    for pattern, mend in (
        (r"(.*)\.z\d{2,3}$", ZIP_VOLUME),
        (r"(.*)\.part\d+\.rar$|(.*)\.r\d{2}$", f"{VOLUME} (unpack the first: it takes the others)"),
        (r"(.*\.tar\.(?:z|lz|lz4|lzma|lzo|br|sz))$", f"it is a tar with a compression that is not known here: {_PACK}"),
        (r"(.*\.(?:zip|zipx|7z|rar|tar|tgz|tar\.\w+))[._-]?(?:part)?[._-]?(?:\d{1,4}|[a-c][a-z])$", _CAT_JOIN),
        (r"(.*\.(?:zip|7z|rar|tar|tgz|tar\.\w+))\.(?:part|partial|crdownload|download|filepart|opdownload|!ut)$",
         f"it is a download that did not end: {_LOAD}"),
        (r"(.*\.(?:7z|rar|zipx|cab|ace|arj|lha|lzh|sit|sitx|cpio|tlz|iso|dmg))$",
         f"it is an archive of a kind that is not opened: {_PACK}"),
        (r"(.*\.(?:jpe?g|png|tiff?|bmp|webp|hei[cf])\.(?:gz|bz2|xz|zst))$", "it is a compressed image: unpack it"),
    )
)  # fmt: skip


def kind_of(name: str) -> str | None:
    """Return the kind of archive by the suffix of a file name, None if it is not the name of an archive."""
    lower = name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if lower.endswith(suffix)), None)


def kind_inside(head: bytes) -> str | None:
    """Return the kind of archive by the first bytes of a file, None if they do not tell it."""
    known = next((kind for start, kind in _STARTS if head.startswith(start)), None)
    return known or ("tar" if _is_tar(head) else None)


def why_no_archive(head: bytes) -> str | None:
    """Return what a file is, by its first bytes, if it is known to be no archive that is opened; else None."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower() if head[:1] != b"\x1f" else head
    return next((what for magic, what in _OTHER_STARTS if head.startswith(magic) or start.startswith(magic)), None)


def why_unopened(name: str) -> tuple[str, str] | None:
    """Return (name of the whole archive, what to do) for a file that is not opened though it may hold images."""
    for pattern, mend in _UNOPENED:
        if found := pattern.match(name.lower()):
            return name[: len(next(filter(None, found.groups()), ""))], mend
    return None


def _is_tar(head: bytes) -> bool:
    """Whether a block is a tar's header: its checksum is right (also in a tar of 1979, which has no magic bytes)."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True
