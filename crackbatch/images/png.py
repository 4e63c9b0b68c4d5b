"""Check the chunks of a PNG, and leave out those that make no pixel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import PngImagePlugin

from crackbatch.images.formats import Refused

# Pillow refuses a PNG with longer texts, which editors write (their history as XMP). Such texts are left out, unless
# the orientation may be in them. The limit is still a bound on what a small file can make Pillow allocate.
_MAX_TEXT_BYTES = 16 << 20
PngImagePlugin.MAX_TEXT_CHUNK = _MAX_TEXT_BYTES
# Transparency and EXIF. The names of the pixels' own chunks begin with a capital letter (PNG 1.2, 3.3).
_KEPT = (b"tRNS", b"eXIf")
# Texts from which Pillow reads the orientation.
_WITH_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type xmp")


def pixels_only(data: bytes) -> bytes:
    """Return the PNG without the chunks that are not needed to decode it and to turn it upright.

    Pillow would refuse the picture if one of them is large or damaged.
    """
    parts, kept_from = [], 0
    for kind, start, end in _chunks(data):
        if not kind[:1].isupper() and not (_is_sound(data, start, end) and _is_needed(kind, data[start + 8 : end - 4])):
            parts.append(data[kept_from:start])
            kept_from = end
    return b"".join([*parts, data[kept_from:]]) if parts else data


def check_png(data: bytes) -> None:
    """Refuse a PNG that is cut off or has a wrong checksum (PNG 1.2, 3.4): Pillow does not check the pixel chunks."""
    for kind, start, end in _chunks(data):
        if not _is_sound(data, start, end):
            raise Refused("corrupt", f"PNG chunk {kind.decode('ascii', 'replace')} does not match its checksum")
        if kind == b"IEND":
            return
    raise Refused("truncated", f"the PNG ends after {len(data)} bytes, before its end chunk")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each whole chunk."""
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + int(struct.unpack_from(">I", data, position)[0])
        if end > len(data):
            return
        yield data[position + 4 : position + 8], position, end
        position = end


def _is_sound(data: bytes, start: int, end: int) -> bool:
    return bool(zlib.crc32(memoryview(data)[start + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0])


def _is_needed(kind: bytes, content: bytes) -> bool:
    if kind in (b"iTXt", b"zTXt", b"tEXt"):
        return content.startswith(_WITH_ORIENTATION) and _text_bytes(kind, content) < _MAX_TEXT_BYTES
    return kind in _KEPT


def _text_bytes(kind: bytes, content: bytes) -> int:
    """Return the length of a text, at most `_MAX_TEXT_BYTES` (PNG 1.2, 4.2.3): unpacked if it is compressed."""
    _, _, rest = content.partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind == b"zTXt":
        rest = rest[1:]
    else:
        return len(rest)
    try:
        return len(zlib.decompressobj().decompress(rest, _MAX_TEXT_BYTES))
    except zlib.error:
        return _MAX_TEXT_BYTES
