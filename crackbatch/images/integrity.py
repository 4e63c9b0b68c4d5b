"""Find image files that are cut off, have endless scans, or are of a kind that Pillow cannot decode.

Decoders are not enough: for a file that ends too soon, some only warn and fill in grey, others only say that it is
broken.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import PIL
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# Encoders write about ten scans. Each scan takes time to decode, and thousands fit into a small file.
_MAX_JPEG_SCANS = 100
# 0xFF is not a marker if the next byte belongs to a scan's data (0x00, restarts) or to no marker at all.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_SCAN, _END = 0xDA, 0xD9
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last is JPEG-LS (ITU-T T.87)
# Tags of TIFF 6.0, section 8
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, WHITE_IS_ZERO = 258, 262, 284, 0
_TIFF_DEPTHS = frozenset([1, 2, 4, 8, 10, 12, 14, 16, 24, 32, 64, 128])
# The compressed data of these formats hold no long runs of zeros. An interrupted copy into reserved space ends in one.
_NEVER_ENDS_IN_ZEROS = frozenset(["webp", "avif", "heif", "jpeg2000"])
_ZEROS = bytes(512)


class Refused(Exception):
    """The image is refused. The arguments are its status and its error text."""


def check_structure(data: bytes, known: str | None) -> None:
    """Raise Refused for defects that decoders may not report: a cut-off file, endless scans, a wrong checksum."""
    end = _webp_pixels_end(data) if known == "webp" else len(data)
    if known in _NEVER_ENDS_IN_ZEROS and data.endswith(_ZEROS, 0, end):
        raise Refused("truncated", "its last bytes are all zeros, so it was probably not written completely")
    if known == "jpeg":
        _check_jpeg(data)
    if known == "png":
        _check_png(data)


def is_cut(data: bytes, known: str) -> bool:
    """Whether bytes are missing at the end, judged by the lengths and end markers in the file."""
    if known == "jpeg":
        return _jpeg_is_cut(data)
    if known == "png":
        return b"IEND" not in data[-64:] and b"IEND" not in data
    if known == "webp":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if known in ("heif", "avif"):
        return _boxes_are_cut(data)
    if known == "bmp":
        return len(data) < 54 or struct.unpack_from("<I", data, 2)[0] > len(data)
    if known == "tiff":
        return _tiff_is_cut(data)
    return len(data) < 32


def unknown_kind(data: bytes, known: str, error: Exception) -> str | None:
    """Describe an intact JPEG or TIFF of a kind that Pillow does not know; return None otherwise."""
    if known == "jpeg":
        return _jpeg_kind(data)
    if known == "tiff" and isinstance(error, PIL.UnidentifiedImageError):
        return _tiff_kind(data)
    return None


def _check_jpeg(data: bytes) -> None:
    """Refuse a JPEG with endless scans or one that is cut off; for the latter, libjpeg only warns and fills in grey."""
    scans = 0
    for marker, _ in _jpeg_markers(data):
        if marker == _END and scans:
            break  # a phone's video, a gain map or another view may follow, with its own markers
        scans += marker == _SCAN
        if scans > _MAX_JPEG_SCANS:
            raise Refused("corrupt", f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
    if _jpeg_is_cut(data):
        raise Refused("truncated", f"the JPEG ends after {len(data)} bytes, before its end marker")


def _jpeg_is_cut(data: bytes) -> bool:
    """Whether no end marker follows a JPEG's first scan; in a scan's data, no other bytes look like an end marker."""
    for marker, position in _jpeg_markers(data):
        if marker in (_SCAN, _END):
            return data.find(b"\xff\xd9", position) < 0
    return True


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers that libjpeg finds in a JPEG, and their positions (ITU-T T.81, B.1.1).

    Segments are skipped by their lengths, so that the markers of an EXIF thumbnail are not taken for the image's own.
    Bytes that are not markers are skipped too: a scan's data, and garbage between segments.
    """
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        position, marker = found.start(), data[found.start() + 1]
        yield marker, position
        if marker in (0xD8, _END):  # these markers have no length
            position += 2
        elif position + 4 > len(data):
            return
        else:
            position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])


def _jpeg_kind(data: bytes) -> str | None:
    """Describe a JPEG's frame (ITU-T T.81, B.2.2) if it is valid and Pillow cannot read it; else return None."""
    for marker, position in _jpeg_markers(data):
        if marker not in _JPEG_FRAMES or position + 10 > len(data):
            continue
        size, bits, height, width, num_components = struct.unpack_from(">HBHHB", data, position + 2)
        known = marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and bits == 8 and num_components in (1, 3, 4)
        if known or not (size == 8 + 3 * num_components and 2 <= bits <= 16 and height and width and num_components):
            return None
        return f"a JPEG with frame type {marker:#x} and {num_components} x {bits} bits/pixel"
    return None


def _check_png(data: bytes) -> None:
    """Refuse a PNG that is cut off or has a wrong checksum (PNG 1.2, 3.4): Pillow does not check the pixel chunks."""
    position = 8
    while position + 12 <= len(data):
        length = int(struct.unpack_from(">I", data, position)[0])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        kind = data[position + 4 : position + 8]
        if zlib.crc32(memoryview(data)[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Refused("corrupt", f"PNG chunk {kind.decode('ascii', 'replace')} does not match its checksum")
        if kind == b"IEND":
            return
        position = end + 4
    raise Refused("truncated", f"the PNG ends after {len(data)} bytes, before its end chunk")


def _webp_pixels_end(data: bytes) -> int:
    """Return where the last pixel chunk of a WebP ends (RFC 9649, 2.3); the EXIF after it may end in zeros."""
    end = whole = min(len(data), 8 + int(struct.unpack_from("<I", data, 4)[0]))
    position = 12
    while position + 8 <= whole:
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind == bytes(4):  # the next chunk's name was not even written
            return whole
        position += 8 + size + size % 2
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            end = position
    return end


def _boxes_are_cut(data: bytes) -> bool:
    """Whether an ISO base media file (ISO/IEC 14496-12, 4.2) is shorter than its boxes say."""
    position = 0
    while position + 8 <= len(data):
        size = int(struct.unpack_from(">I", data, position)[0])
        if size == 1 and position + 16 <= len(data):
            size = int(struct.unpack_from(">Q", data, position + 8)[0])
        if size == 0:
            return False
        if size < 8:
            return False
        position += size
    return position > len(data)


def _tiff_is_cut(data: bytes) -> bool:
    """Whether a TIFF ends before its first directory (TIFF 6.0, section 2)."""
    if len(data) < 8:
        return True
    order = "<" if data[:2] == b"II" else ">"
    return int(struct.unpack_from(order + "I", data, 4)[0]) + 2 > len(data)


def _tiff_kind(data: bytes) -> str | None:
    """Describe a TIFF that Pillow cannot open; return None if its first directory or its pixels are incomplete."""
    big = data[2] == 43
    try:
        tags = ImageFileDirectory_v2(data[: 16 if big else 8])
        start = tags.next
        num_entries = int.from_bytes(data[start : start + (8 if big else 2)], "little" if data[:1] == b"I" else "big")
        stream = io.BytesIO(data)
        stream.seek(start)
        tags.load(stream)  # skips what it cannot read; does not change `next` if the file ends too soon
        whole = len(tags) == num_entries and tags.next != start and min(tags[256], tags[257]) > 0
        offsets, sizes = (tags.get(strips) or tags[tiles] for strips, tiles in ((273, 324), (279, 325)))
        whole &= all(offset + size <= len(data) for offset, size in zip(offsets, sizes, strict=True))
        compression, photometric, samples = tags.get(259, 1), tags[PHOTOMETRIC], tags.get(277, 1)
        # The values that TIFF defines end at 10; those that others have registered begin at 32766.
        whole &= compression in range(1, 11) or compression > 32_765
        whole &= photometric in range(11) or photometric > 32_765
        depths, formats = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(339, (1,))
        whole &= len(depths) == samples and depths[0] in _TIFF_DEPTHS and formats[0] in range(1, 7)
    except Exception:  # a damaged directory may hold any types and values
        return None
    kind = f"photometric interpretation {photometric}, sample format {formats[0]}, {samples} x {depths[0]} bits/pixel"
    return f"a TIFF with compression {compression}, {kind}" if whole else None
