"""Find image files that are cut off, have endless scans, or are of a kind that Pillow cannot decode.

Decoders are not enough: for a file that ends too soon, some only warn and fill in grey, others only say that it is
broken.
"""

from __future__ import annotations

import struct

import PIL

from crackbatch.images.formats import Refused
from crackbatch.images.jpeg import check_scans, has_end, unknown_jpeg
from crackbatch.images.png import check_png
from crackbatch.images.tiff import is_cut_tiff, unknown_tiff

# The compressed data of these formats hold no long runs of zeros. An interrupted copy into reserved space ends in one.
_NEVER_ENDS_IN_ZEROS = frozenset(["webp", "avif", "heif", "jpeg2000"])
_ZEROS = bytes(512)


def check_structure(data: bytes, known: str | None) -> None:
    """Raise Refused for defects that decoders may not report: a cut-off file, endless scans, a wrong checksum."""
    end = _webp_pixels_end(data) if known == "webp" else len(data)
    if known in _NEVER_ENDS_IN_ZEROS and data.endswith(_ZEROS, 0, end):
        raise Refused("truncated", "its last bytes are all zeros, so it was probably not written completely")
    if known == "jpeg":
        check_scans(data)
    if known == "png":
        check_png(data)


def is_cut(data: bytes, known: str) -> bool:
    """Whether bytes are missing at the end, judged by the lengths and end markers in the file."""
    if known == "jpeg":
        return not has_end(data)
    if known == "png":
        return b"IEND" not in data[-64:] and b"IEND" not in data
    if known == "webp":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if known in ("heif", "avif"):
        return _boxes_are_cut(data)
    if known == "bmp":
        return len(data) < 54 or struct.unpack_from("<I", data, 2)[0] > len(data)
    if known == "tiff":
        return is_cut_tiff(data)
    return len(data) < 32


def unknown_kind(data: bytes, known: str, error: Exception) -> str | None:
    """Describe an intact JPEG or TIFF of a kind that Pillow does not know; return None otherwise."""
    if known == "jpeg":
        return unknown_jpeg(data)
    if known == "tiff" and isinstance(error, PIL.UnidentifiedImageError):
        return unknown_tiff(data)
    return None


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
