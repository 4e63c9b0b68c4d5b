"""Lists the members of a tar by reading it from beginning to end; a compressed tar is unpacked at the same time."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import zstandard

from crackbatch.archives.members import LINKS, MAX_IMAGE_BYTES, Listing, Member, too_large
from crackbatch.errors import RunError
from crackbatch.progress import counted
from crackbatch.storage.redaction import as_text

_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    "tar.gz": lambda file: _GzipFile(None, "rb", fileobj=file), "tar.bz2": bz2.open,
    "tar.xz": lambda file: _XzFile(file),
    "tar.zst": lambda file: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        file, read_across_frames=True
    ),
}  # fmt: skip
# Images are packed hardly any further. Only a bomb unpacks to more than this, which would fill a disk.
_UNPACKED, _UNPACKED_PER_BYTE = 256 << 20, 100
_SHOWN_LINK = 200  # characters
_ZSTD_WINDOW = 1 << 27  # bytes that such a stream may make this process allocate; the zstd command allows as much
# tarfile raises ValueError, UnicodeError (a ValueError) and OverflowError for invalid numbers and names in headers.
_STREAM_ERRORS = (
    tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError, OverflowError
)  # fmt: skip
_CHUNK = 1 << 20
_XZ_MEMORY = 192 << 20  # bytes; xz -9 takes 65 MiB
_MAX_TAR_HEADER = 1 << 20
_MAX_GLOBAL_HEADERS = 64 << 10  # bytes of all of them; tarfile copies them for each member
_MAX_HEADERS_IN_A_ROW = 32  # extended headers in front of a member; programs write three at most
_PAX_RECORD = re.compile(rb"(\d{1,9}) ")
_MAX_SPARSE_BLOCKS = 10_000  # of 512 bytes; a member with more holes is rather damaged
# After its end marker, a tar fills its last record with zeros. Records of more than a megabyte (tar -b 2048) are rare,
# even on tapes. More zeros are preallocated disk space or a decompression bomb: terabytes to read without an image.
_MAX_TAR_PADDING = 4 << 20


def list_tar(
    file: IO[bytes],
    kind: str,
    listing: Listing,
    wanted: Callable[[str], bool],
    spool: IO[bytes] | None = None,
    size: int | None = None,
) -> Iterator[Member]:
    """Yield the images of a tar; those of a compressed tar are copied to `spool`, and their ranges refer to it.

    With the file's `size` in bytes, the images may have as many times that as packed images have, and no more.
    Without a spool (in a dry run), the ranges of a compressed tar have no meaning. If tars were joined by `cat`, all of
    them are read; but more than 4 MiB of zeros between two of them count as the end.
    """
    compressed, found, before = kind != "tar", 0, -1
    seen: dict[str, Member] = {}  # possible targets of hard links; in a plain tar also files that are not images
    try:
        stream = _DECOMPRESSORS[kind](file) if compressed else file
        tar = _StrictTarFile.open(
            fileobj=stream, mode="r|" if compressed else "r:", tarinfo=_StrictTarInfo, ignore_zeros=True
        )
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
            if compressed and size is not None and tar.offset > _UNPACKED + _UNPACKED_PER_BYTE * size:
                raise tarfile.ReadError(f"it unpacks to more than {tar.offset:,} bytes, as a bomb does")
            if info.size < 0 or tar.offset <= before:
                raise tarfile.ReadError("a member has a negative size")
            before = tar.offset
            if info.isdir() or not listing.accepts(info.name):
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
            f"it is damaged or cut off ({str(error) or type(error).__name__}): it gave {counted(found, 'image')} before"
            " that, later ones are missing"
        )


def _linked(info: tarfile.TarInfo, seen: dict[str, Member], compressed: bool) -> Member:
    """Return a hard link as a member with the bytes of its target."""
    if target := seen.get(info.linkname):
        return target._replace(name=info.name)
    link = f"it is a hard link to {as_text(info.linkname[:_SHOWN_LINK])}, which"
    status, error = "missing", f"{link} does not come before it in the archive"
    if compressed:
        status, error = "unsupported", f"{link} was skipped or does not exist; pack the archive as .tar instead"
    return Member(info.name, 0, 0, "none", None, None, status, error)


def _tar_member(info: tarfile.TarInfo) -> Member:
    status = error = None
    if info.issparse():
        status, error = "unsupported", "sparse tar members are not supported"
    elif info.size > MAX_IMAGE_BYTES:
        status, error = too_large(info.size)
    return Member(info.name, info.offset_data, info.size, "range", info.size, None, status, error)


def _copy(tar: tarfile.TarFile, info: tarfile.TarInfo, member: Member, spool: IO[bytes]) -> Member:
    """Copy a member of a stream to the spool; a member that is cut off becomes `truncated`."""
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
            error=f"its archive is cut off inside it, after {copied:,} of {info.size:,} bytes ({error})",
        )  # fmt: skip
    return member._replace(start=start)


def _write(spool: IO[bytes], chunk: bytes) -> None:
    """Write to the spool; raise RunError if that fails, because a full disk is not an error of the archive."""
    try:
        spool.write(chunk)
    except OSError as error:
        raise RunError(
            f"an archive cannot be unpacked into the run's folder ({error}); free some space and run again"
        ) from error


class _GzipFile(gzip.GzipFile):
    """Treats other bytes after the last gzip stream as the end, as gzip(1) and Python's bz2 and lzma do."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self.read1(-1 if size is None else size)  # read() loses its data if an error follows
        except gzip.BadGzipFile as error:
            if self.mtime is None or not str(error).startswith("Not a gzipped file"):
                raise
            return b""


class _XzFile(io.RawIOBase):
    """Decompresses xz streams with limited memory: a header may name a dictionary of 4 GiB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._held, self._is_first = file, b"", True
        self._has_begun = False  # whether the stream has given any bytes
        self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._stream.eof:  # another stream may follow, after zeros
                rest = self._stream.unused_data.lstrip(b"\0") or self._next().lstrip(b"\0")
                if not rest:
                    return b""
                self._stream, self._held = lzma.LZMADecompressor(memlimit=_XZ_MEMORY), rest
                self._is_first = self._has_begun = False
            if self._stream.needs_input and not self._held:
                self._held = self._next()
                if not self._held:
                    raise EOFError("the compressed data ends before its end marker")
            held, self._held = self._held, b""
            try:
                data = self._stream.decompress(held, size)
            except lzma.LZMAError:
                if self._is_first or self._has_begun:
                    raise
                return b""  # other bytes behind the last stream are its end, as Python's lzma has it
            if data:
                self._has_begun = True
                return data

    def _next(self) -> bytes:
        return self._file.read(_CHUNK)


class _Ahead:
    """A file of which one piece was read ahead: it gives the piece, and then the tar has its own file again."""

    def __init__(self, tar: tarfile.TarFile, piece: bytes) -> None:
        self._tar, self._file, self._piece = tar, tar.fileobj, piece

    def read(self, _: int) -> bytes:
        self._tar.fileobj = self._file
        return self._piece


def _check_records(data: bytes) -> None:
    """Raise ReadError unless each record of a pax header (POSIX.1-2008, pax) holds its own `=`.

    Otherwise tarfile looks for it in all that follows, for each record again.
    """
    position = 0
    while found := _PAX_RECORD.match(data, position):
        end = position + int(found[1])
        if data.find(b"=", found.end(), end) < 0:
            raise tarfile.ReadError("an extended header is damaged")
        position = end


class _StrictTarFile(tarfile.TarFile):
    zero_bytes = 0  # zeros since the last header; any zeros are an end marker
    depth = 0  # headers in a row, as each reads the next one
    global_bytes = 0


class _StrictTarInfo(tarfile.TarInfo):
    """A header that distinguishes the end marker from a damaged or missing header; to tarfile both are the end.

    With `ignore_zeros`, tarfile continues after an end marker, so tars that were joined by `cat` are read completely.
    The file may only end after an end marker. POSIX allows any bytes after it, up to the end of a record. If there are
    more bytes, or if they contain the magic of a header, the tar is damaged.
    """

    def _proc_member(self, tarfile_: _StrictTarFile) -> tarfile.TarInfo:
        # tarfile reads an extended header completely, whatever size it names. This is the only hook to limit it.
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in (*extended, tarfile.SOLARIS_XHDTYPE) and self.size > _MAX_TAR_HEADER:
            raise tarfile.ReadError(f"an extended header has {self.size:,} bytes")
        if self.type == tarfile.XGLTYPE:
            tarfile_.global_bytes += self.size
        if tarfile_.depth > _MAX_HEADERS_IN_A_ROW or tarfile_.global_bytes > _MAX_GLOBAL_HEADERS:
            raise tarfile.ReadError("it has too many extended headers")
        tarfile_.depth += 1
        if self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            data = tarfile_.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]
            _check_records(data)
            tarfile_.fileobj = _Ahead(tarfile_, data)  # type: ignore[assignment]
        try:
            return super()._proc_member(tarfile_)  # type: ignore[misc,no-any-return]
        finally:
            tarfile_.depth -= 1

    def _proc_sparse(self, tarfile_: _StrictTarFile) -> tarfile.TarInfo:
        """Skip the map of a sparse member (GNU tar's manual, Sparse Formats), which has no end in a hostile tar."""
        _, is_extended, size = self._sparse_structs  # type: ignore[attr-defined]
        del self._sparse_structs  # type: ignore[attr-defined]
        file: Any = tarfile_.fileobj
        for _ in range(_MAX_SPARSE_BLOCKS):
            if not is_extended:
                break
            is_extended = bool(file.read(tarfile.BLOCKSIZE)[504:505].strip(b"\0"))
        else:
            raise tarfile.ReadError("a sparse member has a map without end")
        self.sparse = b""
        self.offset_data = file.tell()
        tarfile_.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        self.size = size
        return self

    def _proc_gnusparse_00(self, following: tarfile.TarInfo, *_: Any) -> None:
        following.sparse = b""

    def _proc_gnusparse_01(self, following: tarfile.TarInfo, *_: Any) -> None:
        following.sparse = b""

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, headers: Any, tarfile_: Any) -> None:
        """Leave the map of a sparse member unread: it stands in front of its data, and may have no end either."""
        following.sparse = b""

    @classmethod
    def fromtarfile(cls, tarfile_: _StrictTarFile) -> tarfile.TarInfo:  # type: ignore[override]
        """Return the next header; raise ReadError if the archive is cut off, EmptyHeaderError at its end."""
        file: Any = tarfile_.fileobj
        block = file.read(tarfile.BLOCKSIZE)  # as in tarfile, which does not give the block to its callers
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
                raise tarfile.ReadError("it has no end marker, so it was probably cut off") from None
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            rest = block + file.read(_MAX_TAR_PADDING) if tarfile_.zero_bytes else b""
            if not rest or len(rest) > _MAX_TAR_PADDING or b"ustar" in rest:
                raise tarfile.ReadError(f"damaged member header: {error}") from None
        raise tarfile.EmptyHeaderError("the end")  # type: ignore[attr-defined]
