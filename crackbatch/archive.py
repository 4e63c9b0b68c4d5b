"""What lies in an archive and where: the directories of zip, tar and image Parquet, read without their images.

A member is a byte range of its archive, plus how to undo what was done to it. Damaged archives give what can still be
found, and say what is missing through `Listing.problems`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import RunError
from crackbatch.redaction import as_text

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
_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    "tar.gz": lambda file: _GzipFile(None, "rb", fileobj=file), "tar.bz2": bz2.open, "tar.xz": lzma.open
}  # fmt: skip
# ValueError, its UnicodeError and OverflowError are what tarfile raises at senseless numbers and names in headers.
_STREAM_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError)

# No photograph is encoded larger than this; a directory that says so is damaged or hostile.
MAX_IMAGE_BYTES = 1 << 30
LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")  # APPNOTE.TXT 4.3.7
LOCAL_MAGIC = b"PK\x03\x04"
_ZIP_METHODS = {zipfile.ZIP_STORED: "zip-stored", zipfile.ZIP_DEFLATED: "zip-deflated"}
_KEEPING_MODES = (3, 19)  # Unix and macOS, of the systems that a zip's writer may name (APPNOTE.TXT 4.4.2.2)
_MAX_ZIP_END = 22 + 65_535  # an end record with the longest comment
_METHOD_NAMES = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
_LINKS = "links and special files in archives"
_CHUNK = 1 << 20
_MAX_UNMEASURED = 20
_MAX_TAR_HEADER = 1 << 20
# Behind its end marker a tar fills its last record; even to tapes, records of more than a megabyte (tar -b 2048) are
# hardly written. More zeros are room that was set aside on a disk, or a bomb: terabytes, for no image.
_MAX_TAR_PADDING = 4 << 20


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


def list_zip(file: IO[bytes], listing: Listing, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Images of a zip in the order of their bytes; without its directory, those that a scan of the file finds."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, UnicodeDecodeError) as error:
        found = 0
        for info, following in _scan_zip(file):
            if member := _zip_member(info, following, listing, wanted):
                found += 1
                yield member
        listing.problems.append(
            f"its directory cannot be read ({error}): {found:,} images were found without it, others may be missing"
        )
        return
    infos = sorted(archive.filelist, key=lambda info: info.header_offset)
    end = archive.start_dir
    begin = infos[0].header_offset if infos else end  # negative where a zip lost its first bytes
    if 0 < begin <= end and _follows_a_zip(file, begin):
        listing.problems.append("another zip stands before it in the same file, whose images are missing: split them")
    archive.filelist = []
    archive.NameToInfo = {}
    infos.reverse()  # so that each entry is freed once it is listed: a million of them weigh a gigabyte
    while infos:
        info = infos.pop()
        following = infos[-1].header_offset if infos else end
        if member := _zip_member(info, following, listing, wanted):
            if not 0 <= member.start < end:  # not asked for: the system's error would be that of its neighbours too
                where = "the zip's directory says that it lies outside of the file"
                member = member._replace(status="corrupt", error=where)
            yield member


def _follows_a_zip(file: IO[bytes], start: int) -> bool:
    """Whether the end record of another zip (APPNOTE.TXT 4.3.16), and its comment, end where this one's bytes start."""
    begin = max(0, start - _MAX_ZIP_END)
    file.seek(begin)
    before = file.read(start - begin)
    at = len(before)
    while (at := before.rfind(b"PK\x05\x06", 0, at)) >= 0:
        if at + 22 <= len(before) == at + 22 + int(struct.unpack_from("<H", before, at + 20)[0]):
            return True
    return False


def _zip_member(
    info: zipfile.ZipInfo, following: int, listing: Listing, wanted: Callable[[str], bool]
) -> Member | None:
    """The member with the range from its local header to the next one, which holds header, name, extras and data."""
    if info.is_dir() or not wanted(info.filename):
        return None
    if info.create_system in _KEEPING_MODES and stat.S_ISLNK(info.external_attr >> 16):
        listing.pass_over(_LINKS)
        return None
    start, needed = info.header_offset, LOCAL_HEADER.size + info.compress_size
    # Entries may overlap or lie apart in odd files; what a member needs is never cut, and the rest is bounded.
    most = needed + 2 * 65_535
    likely = max(following - start, needed + len(info.orig_filename) * 4 + 64)
    length = min(likely, most) if following > start else most
    status = error = None
    method = _ZIP_METHODS.get(info.compress_type)
    if info.flag_bits & 0x1:
        status, error = "encrypted", "this zip member needs a password"
    elif method is None:
        name = _METHOD_NAMES.get(info.compress_type, "unknown")
        status, error = "unsupported", f"zip compression method {info.compress_type} ({name}) cannot be read here"
    elif max(info.file_size, info.compress_size) > MAX_IMAGE_BYTES:
        status, error = _too_large(info.file_size)
    elif info.compress_size > info.file_size + info.file_size // 100 + 1024:
        status, error = "corrupt", f"{info.compress_size:,} packed bytes for {info.file_size:,} unpacked ones"
    return Member(info.filename, start, length, method or "none", info.file_size, info.CRC, status, error)


def _too_large(size: int) -> tuple[str, str]:
    return "too_large", f"{size:,} encoded bytes are more than the {MAX_IMAGE_BYTES:,} allowed"


def _scan_zip(file: IO[bytes]) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """(member, where its bytes end) by local headers, for a zip whose directory is lost."""
    offset = given_up = 0
    while (offset := _find(file, LOCAL_MAGIC, offset)) >= 0:
        file.seek(offset)
        head = file.read(LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size:
            return
        _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL_HEADER.unpack(head)
        name = file.read(name_length)
        extra = file.read(extra_length)
        header_length = LOCAL_HEADER.size + name_length + extra_length
        packed, size = _zip64_sizes(extra, packed, size)
        if flags & 0x8 and not packed:
            measured = _measure_member(file, offset + header_length, method)
            if measured is None:
                given_up += 1
                if given_up > _MAX_UNMEASURED:  # each costs a look through the rest of the file
                    return
                offset += 4
                continue
            packed, size, crc = measured
        info = zipfile.ZipInfo(name.decode("utf-8" if flags & 0x800 else "cp437", "replace"))
        info.flag_bits, info.compress_type, info.CRC = flags, method, crc
        info.header_offset, info.compress_size, info.file_size = offset, packed, size
        offset += header_length + packed
        yield info, offset


def _zip64_sizes(extra: bytes, packed: int, size: int) -> tuple[int, int]:
    """Sizes from a zip64 extra field (APPNOTE.TXT 4.5.3) where the header's own are full."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1 and length >= 16 and packed == size == 0xFFFFFFFF:
            size, packed = struct.unpack_from("<QQ", extra, at + 4)
        at += 4 + length
    return packed, size


def _measure_member(file: IO[bytes], start: int, method: int) -> tuple[int, int, int] | None:
    """(packed size, size, crc) of a member whose sizes stand behind it, found by unpacking; None if it is cut off."""
    if method == zipfile.ZIP_STORED:
        end = start
        while (end := _find(file, b"PK\x07\x08", end)) >= 0:
            file.seek(end + 4)
            descriptor = file.read(20).ljust(20, b"\0")
            for form in ("<LLL", "<LQQ"):  # zip64's sizes are twice as long
                crc, packed, size = struct.unpack_from(form, descriptor)
                if packed == size == end - start:
                    return packed, size, crc
            end += 4
        return None
    file.seek(start)
    inflater, packed, size, crc = zlib.decompressobj(-15), 0, 0, 0
    while not inflater.eof and (chunk := file.read(1 << 16)):
        packed += len(chunk)
        while chunk and not inflater.eof:
            try:
                data = inflater.decompress(chunk, _CHUNK)
            except zlib.error:
                return None
            size, crc, chunk = size + len(data), zlib.crc32(data, crc), inflater.unconsumed_tail
        if size > MAX_IMAGE_BYTES:
            return None
    return (packed - len(inflater.unused_data), size, crc) if inflater.eof else None


def _find(file: IO[bytes], pattern: bytes, offset: int) -> int:
    """Where `pattern` next stands in a file, or -1; reads a megabyte at a time."""
    file.seek(offset)
    held = b""
    while chunk := file.read(_CHUNK):
        held += chunk
        if (found := held.find(pattern)) >= 0:
            return offset + found
        offset += len(held) - len(pattern) + 1
        held = held[-len(pattern) + 1 :]
    return -1


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
                listing.pass_over(_LINKS)
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
        status, error = _too_large(info.size)
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
