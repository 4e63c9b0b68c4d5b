"""Lists and unpacks the members of a zip. If the directory of the zip is lost, it scans the file for members."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from crackbatch.archives.kinds import ZIP_VOLUME
from crackbatch.archives.members import LINKS, MAX_IMAGE_BYTES, Content, Listing, Member, too_large
from crackbatch.progress import counted
from crackbatch.storage.redaction import as_text

LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")  # APPNOTE.TXT 4.3.7
LOCAL_MAGIC = b"PK\x03\x04"
_ZIP_METHODS = {zipfile.ZIP_STORED: "zip-stored", zipfile.ZIP_DEFLATED: "zip-deflated"}
_KEEPING_MODES = (3, 19)  # systems that store file modes: Unix and macOS (APPNOTE.TXT 4.4.2.2)
_MAX_ZIP_END = 22 + 65_535  # size of an end record with the longest comment
_METHOD_NAMES = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
_CHUNK, _FIRST_CHUNK = 1 << 20, 4 << 10
_BEHIND = 20  # bytes
_MAX_UNMEASURED = 20
_MAX_DIRECTORY = 1 << 30  # bytes, of ten million members
_MOST_TWINS = 3
_MOST_PACKED = 20  # times; encoded images are hardly packed any more
# To find where members end, this much is unpacked, and for each byte of the file. Images are not packed that well.
_INFLATED, _INFLATED_PER_BYTE = 256 << 20, 64
_WRAP = 1 << 32  # without zip64, this is where positions and sizes begin again at 0


def list_zip(file: IO[bytes], listing: Listing, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the images of a zip in byte order; if the directory is lost, those that a scan of the file finds."""
    if (claimed := _directory_bytes(file)) > _MAX_DIRECTORY:  # which zipfile would read at once
        listing.problems.append(f"its directory claims to have {claimed:,} bytes, more than {_MAX_DIRECTORY:,}")
        return
    try:
        archive = zipfile.ZipFile(file)
        if _is_last_volume(file):
            listing.problems.append(ZIP_VOLUME)
            return
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, UnicodeDecodeError) as error:
        file.seek(0)
        if file.read(4) == b"PK\x07\x08":
            listing.problems.append(ZIP_VOLUME)
            return
        found = 0
        for info, following in _scan_zip(file):
            if member := _zip_member(info, following, listing, wanted):
                found += 1
                yield member
        listing.problems.append(
            f"its directory cannot be read ({error}): a scan found {counted(found, 'image')}, others may be missing"
        )
        return
    end = archive.start_dir
    if lost := _unwrap(file, archive.filelist, end):
        listing.problems.append(
            f"it is larger than 4 GiB and was written without zip64, as Finder of macOS does: {lost:,} of its members"
            " cannot be found; unpack it on a Mac and give the folder"
        )
    infos = sorted(archive.filelist, key=lambda info: info.header_offset)
    overlaps = _overlaps(infos)
    begin = infos[0].header_offset if infos else end  # negative if the zip lost its first bytes
    if 0 < begin <= end and _follows_a_zip(file, begin):
        listing.problems.append(
            "another zip comes before it in the same file, and its images are missing; split the file"
        )
    archive.filelist = []
    archive.NameToInfo = {}
    infos.reverse()  # each entry is freed after it was listed: a million entries take a gigabyte
    while infos:
        info = infos.pop()
        following = infos[-1].header_offset if infos else end
        if member := _zip_member(info, following, listing, wanted):
            if not 0 <= member.start < end:  # not read: an error would also affect its neighbours in the same request
                where = "the zip's directory gives it a position outside of the file"
                member = member._replace(status="corrupt", error=where)
            elif (other := overlaps.get(len(infos))) is not None:
                overlap = f"its bytes overlap those of {as_text(other)}, as in a decompression bomb"
                member = member._replace(status="corrupt", error=f"{overlap}; pack the zip again")
            yield member


def _overlaps(infos: list[zipfile.ZipInfo]) -> dict[int, str]:
    """Return the members (how many come behind each) that reach into a later one, with the name of that one.

    A few names of one member do not overlap, if they cannot be a bomb. `infos` are in the order of their positions.
    """
    found: dict[int, str] = {}
    other, twins = None, 1  # the next member at another position, and how many share the current one
    for behind, (info, following) in enumerate(zip(infos[-2::-1], infos[:0:-1], strict=True), start=1):
        same = info.header_offset == following.header_offset
        other, twins = (other, twins + 1) if same else (following, 1)
        is_twin = same and info.compress_size == following.compress_size and info.file_size == following.file_size
        is_bomb = twins > _MOST_TWINS or info.file_size > _MOST_PACKED * info.compress_size + _CHUNK
        end = info.header_offset + LOCAL_HEADER.size + len(info.orig_filename) + info.compress_size
        if same and (is_bomb or not is_twin):
            found[behind] = following.filename
        elif other is not None and end > other.header_offset >= 0:
            found[behind] = other.filename
    return found


def _directory_bytes(file: IO[bytes]) -> int:
    """Return how many bytes the directory has, as the end record (APPNOTE.TXT 4.3.14 and 4.3.16) says; 0 if unknown."""
    try:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    except (OSError, zipfile.BadZipFile, struct.error, ValueError):
        return 0
    return int(end[5]) if end else 0


def _is_last_volume(file: IO[bytes]) -> bool:
    """Whether the end record (APPNOTE.TXT 4.3.16) says that the zip began in another file."""
    size = file.seek(0, io.SEEK_END)
    begin = max(0, size - _MAX_ZIP_END)
    file.seek(begin)
    end = file.read(size - begin)
    at = end.rfind(b"PK\x05\x06")
    return at >= 0 and len(end) >= at + 8 and int(struct.unpack_from("<H", end, at + 4)[0]) not in (0, 0xFFFF)


def _unwrap(file: IO[bytes], infos: list[zipfile.ZipInfo], end: int) -> int:
    """Correct the positions in a zip of more than 4 GiB without zip64; return how many members cannot be found.

    Such a zip gives the lowest 32 bits of its positions and sizes. `zipfile` finds the directory behind the place that
    the end record gives, takes the difference for bytes in front of the zip, and adds it to all positions. `infos` are
    in the order of the directory, which is that of the members.
    """
    first = min((info.header_offset for info in infos), default=0)
    if min(first, end) < _WRAP or _is_member(file, first, infos[0]):
        return 0
    added, behind, lost = first // _WRAP * _WRAP, 0, 0
    for info in infos:
        low = (info.header_offset - added) % _WRAP
        info.header_offset = -1
        for place in range(behind + (low - behind) % _WRAP, end, _WRAP):
            if _is_member(file, place, info):
                info.header_offset, behind = place, place + 1
                break
        lost += info.header_offset < 0
    found = sorted((info for info in infos if info.header_offset >= 0), key=lambda info: info.header_offset)
    for info, following in zip(found, [*(info.header_offset for info in found[1:]), end], strict=True):
        wraps = (following - info.header_offset - info.compress_size) // _WRAP * _WRAP
        info.compress_size += wraps
        info.file_size += wraps
    return lost


def _is_member(file: IO[bytes], place: int, info: zipfile.ZipInfo) -> bool:
    """Whether the local header of the member stands at this place."""
    file.seek(place)
    head = file.read(LOCAL_HEADER.size)
    if len(head) < LOCAL_HEADER.size or not head.startswith(LOCAL_MAGIC):
        return False
    name = file.read(int(LOCAL_HEADER.unpack(head)[-2]))
    return name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace") == info.orig_filename


def _follows_a_zip(file: IO[bytes], start: int) -> bool:
    """Whether the end record of another zip (APPNOTE.TXT 4.3.16) with its comment ends where this zip starts."""
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
    """Return the member with its byte range: from its local header (with name, extras and data) to the next one."""
    if info.is_dir() or not listing.accepts(info.filename) or not wanted(info.filename):
        return None
    if info.create_system in _KEEPING_MODES and stat.S_ISLNK(info.external_attr >> 16):
        listing.pass_over(LINKS)
        return None
    start, needed = info.header_offset, LOCAL_HEADER.size + info.compress_size
    # In unusual files, members overlap or have gaps. A range holds what the member needs, and is limited beyond that.
    most = needed + 2 * 65_535
    likely = max(following - start, needed + len(info.orig_filename) * 4 + 64)
    length = min(likely, most) if following > start else most
    status = error = None
    method = _ZIP_METHODS.get(info.compress_type)
    if info.flag_bits & 0x1:
        status, error = "encrypted", "this zip member needs a password"
    elif method is None:
        name = _METHOD_NAMES.get(info.compress_type, "unknown")
        status, error = "unsupported", f"zip compression method {info.compress_type} ({name}) is not supported"
    elif max(info.file_size, info.compress_size) > MAX_IMAGE_BYTES:
        status, error = too_large(max(info.file_size, info.compress_size))
    elif info.compress_size > info.file_size + info.file_size // 100 + 1024:
        status, error = "corrupt", f"it has {info.compress_size:,} packed bytes for {info.file_size:,} unpacked bytes"
    return Member(info.filename, start, length, method or "none", info.file_size, info.CRC, status, error)


def _scan_zip(file: IO[bytes]) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """Yield each member and the end of its bytes, found by local headers, for a zip that lost its directory."""
    offset = given_up = 0
    most = _INFLATED + _INFLATED_PER_BYTE * file.seek(0, io.SEEK_END)
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
            measured = _measure_member(file, offset + header_length, method, min(most, MAX_IMAGE_BYTES))
            if measured is None:
                given_up, most = given_up + 1, most // 2
                if given_up > _MAX_UNMEASURED:  # each one costs a scan of the rest of the file
                    return
                offset += 4
                continue
            packed, size, crc = measured
            most -= size
        info = zipfile.ZipInfo(name.decode("utf-8" if flags & 0x800 else "cp437", "replace"))
        info.flag_bits, info.compress_type, info.CRC = flags, method, crc
        info.header_offset, info.compress_size, info.file_size = offset, packed, size
        offset += header_length + packed
        yield info, offset


def _zip64_sizes(extra: bytes, packed: int, size: int) -> tuple[int, int]:
    """Return the sizes of a zip64 extra field (APPNOTE.TXT 4.5.3) if the header's own sizes are at their maximum."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1 and length >= 16 and packed == size == 0xFFFFFFFF:
            size, packed = struct.unpack_from("<QQ", extra, at + 4)
        at += 4 + length
    return packed, size


def _measure_member(file: IO[bytes], start: int, method: int, most: int) -> tuple[int, int, int] | None:
    """Return (packed size, size, crc) of a member with its sizes after its data; None if they cannot be found.

    No more than `most` bytes are unpacked for it.
    """
    if method == zipfile.ZIP_STORED:
        for end, behind in _find_all(file, b"PK\x07\x08", start):
            descriptor = behind.ljust(20, b"\0")
            for form in ("<LLL", "<LQQ"):  # zip64 sizes are twice as long
                crc, packed, size = struct.unpack_from(form, descriptor)
                if packed == size == end - start:
                    return packed, size, crc
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
        if size > most:
            return None
    return (packed - len(inflater.unused_data), size, crc) if inflater.eof else None


def _find(file: IO[bytes], pattern: bytes, offset: int) -> int:
    """Return the next position of `pattern` in a file, or -1."""
    return next((position for position, _ in _find_all(file, pattern, offset)), -1)


def _find_all(file: IO[bytes], pattern: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield each position of `pattern` in a file with up to 20 bytes behind it.

    The file is read once, first a little, then up to a megabyte at a time: what is looked for is often near.
    """
    file.seek(offset)
    held, size = b"", _FIRST_CHUNK
    while True:
        chunk, at = file.read(size), 0
        held, size = held + chunk, min(2 * size, _CHUNK)
        while (found := held.find(pattern, at)) >= 0:
            at = found + len(pattern)
            if chunk and at + _BEHIND > len(held):
                break
            yield offset + found, held[at : at + _BEHIND]
        if not chunk:
            return
        kept = found if found >= 0 else max(at, len(held) - len(pattern) + 1)
        offset, held = offset + kept, held[kept:]


def unzip(row: dict[str, Any], chunk: memoryview) -> Content:
    """Unpack a zip member; `chunk` starts at its local header. The size in the directory limits the result."""
    size = row["size_bytes"]
    if len(chunk) < LOCAL_HEADER.size or chunk[:4] != LOCAL_MAGIC:
        return Content(None, "corrupt", "there is no member at the position that the zip's directory gives")
    name_length, extra_length = struct.unpack_from("<HH", chunk, 26)
    packed = chunk[LOCAL_HEADER.size + name_length + extra_length :]
    if row["method"] == "zip-stored":
        data = bytes(packed[:size])
    else:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(packed, size + 1)
        except zlib.error as error:
            return Content(None, "corrupt", f"the zip member cannot be unpacked: {error}")
        if len(data) > size:
            return Content(None, "corrupt", f"the zip member is larger than the {size:,} bytes in its directory entry")
    if len(data) < size:
        return Content(None, "truncated", f"the zip member is cut off: it has {len(data):,} of {size:,} bytes")
    if zlib.crc32(data) != row["crc32"]:
        return Content(None, "corrupt", "the zip member does not match its checksum (CRC-32)")
    return Content(data)
