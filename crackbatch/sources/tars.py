"""The members of a tar, read from its beginning to its end; of a compressed one, unpacked on the way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from crackbatch.errors import RunError
from crackbatch.sources.members import LINKS, MAX_IMAGE_BYTES, Listing, Member, too_large
from crackbatch.storage.redaction import as_text

_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    "tar.gz": lambda file: _GzipFile(None, "rb", fileobj=file), "tar.bz2": bz2.open, "tar.xz": lzma.open
}  # fmt: skip
# ValueError, its UnicodeError and OverflowError are what tarfile raises at senseless numbers and names in headers.
_STREAM_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError)
_CHUNK = 1 << 20
_MAX_TAR_HEADER = 1 << 20
# Behind its end marker a tar fills its last record; even to tapes, records of more than a megabyte (tar -b 2048) are
# hardly written. More zeros are room that was set aside on a disk, or a bomb: terabytes, for no image.
_MAX_TAR_PADDING = 4 << 20


def list_tar(
    file: IO[bytes], kind: str, listing: Listing, wanted: Callable[[str], bool], spool: IO[bytes] | None = None
) -> Iterator[Member]:
    """Images of a tar; a compressed one is read through once, its images copied to `spool`, where the ranges point.

    Without a spool (a dry run) the ranges of a compressed tar mean nothing. Tars that were joined by `cat` are read to
    the last, or to where more than 4 MiB of zeros lie between two, which are taken for the end.
    """
    compressed, found = kind != "tar", 0
    seen: dict[str, Member] = {}  # what hard links may point to: where nothing is unpacked, also what is no image
    try:
        stream = _DECOMPRESSORS[kind](file) if compressed else file
        tar = _StrictTarFile.open(
            fileobj=stream, mode="r|" if compressed else "r:", tarinfo=_StrictTarInfo, ignore_zeros=True
        )
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if info.isdir():
                continue
            is_wanted = wanted(info.name)
            if info.isreg() and (is_wanted or not compressed):
                member = seen[info.name] = _tar_member(info)
            if not is_wanted:
                continue
            if info.islnk():
                member = _linked(info, seen, compressed)
            elif not info.isreg():
                listing.pass_over(LINKS)
                continue
            elif compressed and spool is not None and member.status is None:
                member = seen[info.name] = _copy(tar, info, member, spool)
            found += 1
            yield member
            if member.status == "truncated":
                raise tarfile.ReadError("unexpected end of data")
    except _STREAM_ERRORS as error:
        listing.problems.append(
            f"it breaks off ({str(error) or type(error).__name__}): {found:,} images were found before that,"
            " any that follow are missing"
        )


def _linked(info: tarfile.TarInfo, seen: dict[str, Member], compressed: bool) -> Member:
    """A hard link as the member that it points to, whose bytes it has."""
    if target := seen.get(info.linkname):
        return target._replace(name=info.name)
    link = f"a hard link to {as_text(info.linkname)}, which"
    status, error = "missing", f"{link} is not in the archive before it"
    if compressed:
        status, error = "unsupported", f"{link} was passed over or is not there; pack it as .tar instead"
    return Member(info.name, 0, 0, "none", None, None, status, error)


def _tar_member(info: tarfile.TarInfo) -> Member:
    status = error = None
    if info.issparse():
        status, error = "unsupported", "sparse tar members cannot be read here"
    elif info.size > MAX_IMAGE_BYTES:
        status, error = too_large(info.size)
    return Member(info.name, info.offset_data, info.size, "range", info.size, None, status, error)


def _copy(tar: tarfile.TarFile, info: tarfile.TarInfo, member: Member, spool: IO[bytes]) -> Member:
    """Copy a member of a stream to the spool; one that is cut off keeps its place, as truncated."""
    start = spool.tell()
    source = tar.extractfile(info)
    assert source is not None
    copied = 0
    try:
        while chunk := source.read(_CHUNK):
            _write(spool, chunk)
            copied += len(chunk)
    except _STREAM_ERRORS as error:
        return member._replace(
            start=start, length=0, status="truncated",
            error=f"its archive breaks off inside it, after {copied:,} of {info.size:,} bytes ({error})",
        )  # fmt: skip
    return member._replace(start=start)


def _write(spool: IO[bytes], chunk: bytes) -> None:
    """Write to the spool; a disk that takes no more is no fault of the archive's, and the run's end."""
    try:
        spool.write(chunk)
    except OSError as error:
        raise RunError(
            f"an archive cannot be unpacked into the run's folder ({error}); make room and run again"
        ) from error


class _GzipFile(gzip.GzipFile):
    """Takes what is no gzip behind the last stream for the end, as gzip(1) does, and Python at bzip2 and xz."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self.read1(-1 if size is None else size)  # read() loses what it has where an error follows
        except gzip.BadGzipFile as error:
            if self.mtime is None or not str(error).startswith("Not a gzipped file"):
                raise
            return b""


class _StrictTarFile(tarfile.TarFile):
    zero_bytes = 0  # since the last header; where there are any, they are an end marker


class _StrictTarInfo(tarfile.TarInfo):
    """A header that tells the end marker from a damaged or missing header, which tarfile takes for the end as well.

    Tars that were joined by `cat` are read to the last: with `ignore_zeros`, tarfile goes on behind an end marker, and
    here the file may end behind one only. POSIX allows any bytes there, to the end of a record: it is damage where they
    are more than that, or hold the magic of a header.
    """

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        # tarfile reads extended headers whole, however large they say that they are; it has no other hook for this.
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in (*extended, tarfile.SOLARIS_XHDTYPE) and self.size > _MAX_TAR_HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")
        return super()._proc_member(tarfile_)  # type: ignore[misc,no-any-return]

    @classmethod
    def fromtarfile(cls, tarfile_: _StrictTarFile) -> tarfile.TarInfo:  # type: ignore[override]
        """The next header; raises ReadError where the archive just stops, and EmptyHeaderError at its end."""
        file: Any = tarfile_.fileobj
        block = file.read(tarfile.BLOCKSIZE)  # as tarfile's own does, which keeps the block to itself
        try:
            header = cls.frombuf(block, tarfile_.encoding, tarfile_.errors)
            tarfile_.zero_bytes = 0
            header.offset = file.tell() - tarfile.BLOCKSIZE
            return header._proc_member(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.zero_bytes += tarfile.BLOCKSIZE
            if tarfile_.zero_bytes <= _MAX_TAR_PADDING:
                raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if not tarfile_.zero_bytes:
                raise tarfile.ReadError("it has no end marker, as if it had been cut off") from None
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            rest = block + file.read(_MAX_TAR_PADDING) if tarfile_.zero_bytes else b""
            if not rest or len(rest) > _MAX_TAR_PADDING or b"ustar" in rest:
                raise tarfile.ReadError(f"damaged member header: {error}") from None
        raise tarfile.EmptyHeaderError("the end")  # type: ignore[attr-defined]
