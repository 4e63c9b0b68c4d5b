"""Decode JPEGs, and find those that are cut off or damaged inside.

libjpeg decodes what it can of a damaged JPEG, fills in grey or wrong blocks, and only warns. Here such a warning
refuses the image, unless the warning is about something that changes no pixel.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg

from crackbatch.images.formats import Refused

# Encoders write about ten scans. Each scan takes time to decode, and thousands fit into a small file.
_MAX_SCANS = 100
# 0xFF is not a marker if the next byte belongs to a scan's data (0x00, restarts) or to no marker at all.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_SCAN, _END, _TABLES = 0xDA, 0xD9, 0xC4
_END_MARKER = b"\xff\xd9"
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last is JPEG-LS (ITU-T T.87)
# Bad sectors of a disk or card are read as zeros. Photos hold no such run: to be all zeros, their codes would have to
# be the shortest one, a thousand times.
_ZEROS, _ALL_ZEROS = bytes(64), re.compile(rb"\0*")
_FEW_BYTES = 8  # some encoders leave so many in front of the end marker
_READ_AHEAD = 8  # bytes that libjpeg holds when it has decoded the last block; it may not count them as left over
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_MAX_MENDS = 8


def decode_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """Return RGB pixels (height, width, 3) uint8; raise Refused if a part of them would be wrong.

    The result is None for rare kinds (CMYK, odd subsampling) and for other errors: Pillow decodes it, or says why not.
    """
    try:
        found = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    if found[:2] != (height, width) or found[2] not in ("Gray", "RGB", "YCbCr"):
        return None
    if _has_zeros_inside(data):
        raise Refused("corrupt", "the JPEG is damaged inside: a part of its scan is zeros, as a bad sector is read")
    tried = data
    for _ in range(_MAX_MENDS):
        try:
            pixels: np.ndarray = simplejpeg.decode_jpeg(tried, "RGB", strict=True)
        except ValueError as error:
            mended = _mend(tried, str(error), len(data))
            if mended is None:
                return None
            tried = mended
        else:
            if tried is not data and not _is_complete(tried):
                raise _cut(len(data))
            return pixels
    return None


def check_scans(data: bytes) -> None:
    """Refuse a JPEG with endless scans."""
    scans = 0
    for marker, _ in _markers(data):
        if marker == _END and scans:
            break  # a phone's video, a gain map or another view may follow, with its own markers
        scans += marker == _SCAN
        if scans > _MAX_SCANS:
            raise Refused("corrupt", f"the JPEG has more than {_MAX_SCANS} scans")


def has_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan; in a scan's data, no other bytes look like an end marker."""
    return _end_of(data) >= 0


def unknown_jpeg(data: bytes) -> str | None:
    """Describe a JPEG's frame (ITU-T T.81, B.2.2) if it is valid and Pillow cannot read it; else return None."""
    for marker, position in _markers(data):
        if marker not in _FRAMES or position + 10 > len(data):
            continue
        size, bits, height, width, num_components = struct.unpack_from(">HBHHB", data, position + 2)
        known = marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and bits == 8 and num_components in (1, 3, 4)
        if known or not (size == 8 + 3 * num_components and 2 <= bits <= 16 and height and width and num_components):
            return None
        return f"a JPEG with frame type {marker:#x} and {num_components} x {bits} bits/pixel"
    return None


def _cut(length: int) -> Refused:
    return Refused("truncated", f"the JPEG ends after {length} bytes, before its last block")


def _mend(data: bytes, warning: str, length: int) -> bytes | None:
    """Return the JPEG without what libjpeg warned about if that changes no pixel; raise Refused if it does.

    Return None for an error, and for a warning that is not known. `length` is the file's.
    """
    if warning.startswith("Premature end of JPEG file"):
        return data + _END_MARKER
    is_cut = len(data) > length
    if "Corrupt JPEG data" in warning or "two SOI markers" in warning:
        if (left := _LEFT_OVER.search(warning)) and (mended := _without(data, int(left[1]), int(left[2], 16))):
            return mended
        if is_cut:
            raise _cut(length)
        raise Refused("corrupt", f"the JPEG is damaged inside ({warning.strip().removeprefix('Corrupt JPEG data: ')})")
    if "Invalid SOS parameters" in warning:  # some cameras write others, which say nothing for a sequential JPEG
        return _with_plain_scans(data)
    if "JFIF" in warning or "Adobe" in warning:  # an unknown revision or number of colour transform
        return _without_segments(data, (0xE0,) if "JFIF" in warning else (0xEE,))
    return None


def _without(data: bytes, num: int, marker: int) -> bytes | None:
    """Return the JPEG without `num` bytes before a marker if they are fill bytes; None if they are pixels' data.

    Fill bytes are all the same. If more of them stand there than libjpeg has left over, it has decoded the others as
    pixels, so these are not fill bytes but zeros of a file that was not written completely.
    """
    at = _end_of(data) if marker == _END else _scan_of(data)
    while at >= 0:
        if (at := data.find(bytes([0xFF, marker]), at)) < 0:
            break
        fill = data[at - num : at]
        run = num + _READ_AHEAD + 1
        is_fill = fill == fill[:1] * num and data[at - run : at] != fill[:1] * run
        if is_fill or num <= _FEW_BYTES:
            return data[: at - num] + data[at:]
        at = -1 if marker == _END else at + 2
    return None


def _with_plain_scans(data: bytes) -> bytes | None:
    mended = bytearray(data)
    for marker, position in _markers(data):
        if marker == _END:
            break
        if marker == _SCAN and position + 5 <= len(data):
            last = position + 5 + 2 * data[position + 4]
            mended[last : last + 3] = b"\0\x3f\0"
    return bytes(mended) if mended != data else None


def _without_segments(data: bytes, markers: tuple[int, ...]) -> bytes | None:
    for marker, position in _markers(data):
        if marker == _SCAN:
            break
        if marker in markers:
            (length,) = struct.unpack_from(">H", data, position + 2)
            return data[:position] + data[position + 2 + length :]
    return None


def _is_complete(data: bytes) -> bool:
    """Whether the scans hold every bit of every coefficient (ITU-T T.81, G.1.1.1), as far as their headers say."""
    missing: dict[int, list[bool]] = {}
    for marker, position in _markers(data):
        if marker in _FRAMES:
            num = data[position + 9]
            missing = {data[position + 10 + 3 * index]: [True] * 64 for index in range(num)}
        elif marker == _SCAN:
            num = data[position + 4]
            first, last, bits = data[position + 5 + 2 * num : position + 8 + 2 * num]
            for index in range(num):
                if bits & 0x0F == 0 and (component := missing.get(data[position + 5 + 2 * index])):
                    component[first : last + 1] = [False] * (min(last, 63) + 1 - first)
        elif marker == _END:
            break
    return not any(map(any, missing.values()))


def _has_zeros_inside(data: bytes) -> bool:
    """Whether a long run of zeros stands in the scan of a sequential JPEG where zeros are not the code of even blocks.

    In even blocks, which a cartoon or a burnt-out sky has, all codes may be zeros. Zeros just before a marker are fill.
    """
    end = _end_of(data)
    scan = _scan_of(data)
    at = data.find(_ZEROS, max(scan, 0), end if end >= 0 else len(data)) if scan >= 0 else -1
    if at < 0:
        return False
    shortest, table = dict[int, int](), -1
    for marker, position in _markers(data):
        if marker in _FRAMES and marker not in _SEQUENTIAL:
            return False
        if marker == _TABLES:
            shortest.update(_shortest_codes(data, position))
        if marker == _SCAN:
            table = data[position + 6] & 0x0F
            break
    if shortest.get(table, 0) == 0:  # the end of a block
        return False
    while at >= 0:
        behind = _ALL_ZEROS.match(data, at).end()  # type: ignore[union-attr]  # it matches anything
        if data[behind : behind + 1] not in (b"\xff", b""):
            return True
        at = data.find(_ZEROS, behind, end if end >= 0 else len(data))
    return False


def _shortest_codes(data: bytes, position: int) -> dict[int, int]:
    """Return what the code of all zeros means in each table of a segment for AC coefficients (ITU-T T.81, B.2.4.2)."""
    (length,) = struct.unpack_from(">H", data, position + 2)
    found, at, end = dict[int, int](), position + 4, min(position + 2 + length, len(data) - 17)
    while at < end:
        if data[at] & 0x10:
            found[data[at] & 0x0F] = data[at + 17]
        at += 17 + sum(data[at + 1 : at + 17])
    return found


def _scan_of(data: bytes) -> int:
    """Return the position of the first scan, -1 if there is none."""
    return next((position for marker, position in _markers(data) if marker == _SCAN), -1)


def _end_of(data: bytes) -> int:
    """Return the position of the end marker behind the first scan, -1 if there is none."""
    for marker, position in _markers(data):
        if marker in (_SCAN, _END):
            return data.find(_END_MARKER, position)
    return -1


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers that libjpeg finds in a JPEG, and their positions (ITU-T T.81, B.1.1).

    Segments are skipped by their lengths, so that the markers of an EXIF thumbnail are not taken for the image's own.
    Bytes that are not markers are skipped too: a scan's data, and garbage between segments.
    """
    position = 2
    while found := _MARKER.search(data, position):
        position, marker = found.start(), data[found.start() + 1]
        yield marker, position
        if marker in (0xD8, _END):  # these markers have no length
            position += 2
        elif position + 4 > len(data):
            return
        else:
            position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
