"""Find TIFFs that are cut off, are camera raws, or are of a kind that Pillow cannot decode.

Camera raws (DNG, NEF, ARW, CR2, …) are TIFFs whose first picture is a small preview. The photo is behind it, as the
values of a sensor that nothing here can turn into a picture.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import PIL.Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from crackbatch.images.formats import Refused

# Tags of TIFF 6.0, section 8, of its supplement 1 (SubIFDs) and of the DNG specification.
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _MAKE, _PLANAR, _BELOW, _DNG_VERSION = 254, 256, 257, 271, 284, 330, 50706
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# A tile may be larger than a small picture.
_TILE_SPARE, _TILE_PIXELS = 4, 1 << 22
_SENSOR_VALUES = (32803, 34892)  # photometric interpretations of raws: a colour filter array, or linear
_DEPTHS = frozenset([1, 2, 4, 8, 10, 12, 14, 16, 24, 32, 64, 128])
_MAX_DIRECTORIES = 16
# Each maker has its own name for raws that are TIFFs.
_RAWS = {b"nikon": "nef", b"sony": "arw", b"pentax": "pef", b"ricoh": "pef", b"samsung": "srw", b"hasselblad": "3fr",
         b"epson": "erf", b"kodak": "dcr", b"mamiya": "mef", b"phase one": "iiq", b"leaf": "mos"}  # fmt: skip


class _Directory(NamedTuple):
    """One picture of a TIFF: its tags, and whether it is a page (Pillow reaches only pages) or lies below one."""

    tags: Any
    is_page: bool

    @property
    def is_preview(self) -> bool:
        return bool(self.tags.get(_SUBFILE_TYPE, 0) & 1)

    @property
    def num_pixels(self) -> int:
        return int(self.tags.get(_WIDTH, 0) * self.tags.get(_HEIGHT, 0))


def raw_kind(data: bytes) -> str | None:
    """Return the format of a camera raw that is a TIFF, None for another TIFF."""
    with suppress(Exception):  # a damaged directory may hold any types and values
        if data[8:10] == b"CR":
            return "cr2"
        found = list(_directories(data))
        tags = found[0].tags
        if _DNG_VERSION in tags:
            return "dng"
        if any(directory.tags.get(PHOTOMETRIC) in _SENSOR_VALUES for directory in found) or _hides_photo(found):
            make = str(tags.get(_MAKE, "")).lower().encode()
            return next((name for maker, name in _RAWS.items() if make.startswith(maker)), "raw")
    return None


def photo_page(data: bytes) -> int:
    """Return the number of the first page that is not a preview of another one."""
    with suppress(Exception):  # as in `raw_kind`
        pages = [directory for directory in _directories(data) if directory.is_page]
        return next((number for number, page in enumerate(pages) if not page.is_preview), 0)
    return 0


def check_tiff(image: TiffImageFile) -> None:
    """Refuse a TIFF that Pillow opens but cannot decode, or decodes to wrong pixels."""
    compression, tags = image.info.get("compression"), image.tag_v2
    if not _has_codec(compression):
        raise Refused("unsupported", f"the installed Pillow cannot decode a TIFF with compression {compression}")
    tile, size = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0), image.width * image.height
    if tile > _TILE_SPARE * size + _TILE_PIXELS:  # a decoder allocates a whole tile
        raise Refused("corrupt", f"its tiles have {tile:,} pixels, and the picture has {size:,}")
    # In such planes, Pillow takes each byte for a sample.
    if compression == "raw" and tags.get(_PLANAR) == 2 and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8:
        raise Refused("unsupported", "a TIFF with uncompressed planes of more than 8 bits per sample is not supported")


@cache
def _has_codec(compression: object) -> bool:
    """Whether Pillow's libtiff has the codec. Some codecs are optional: writing a tiny TIFF shows if they are there."""
    if compression not in ("lzma", "zstd", "webp"):
        return True
    try:
        PIL.Image.new("RGB", (1, 1)).save(io.BytesIO(), "TIFF", compression=compression)
    except OSError:
        return False
    return True


def _hides_photo(found: list[_Directory]) -> bool:
    """Whether the photo lies below the first page, where Pillow does not reach it."""
    first, below = found[0], [directory for directory in found if not directory.is_page]
    has_photo_page = any(directory.is_page and not directory.is_preview for directory in found)
    hidden = [directory for directory in below if not directory.is_preview]
    if first.is_preview and not has_photo_page:
        return bool(hidden) or _BELOW in first.tags
    return any(directory.num_pixels > first.num_pixels for directory in hidden)


def _directories(data: bytes) -> Iterator[_Directory]:
    """Yield the pages, each followed by the pictures below it; at most a few."""
    header = data[: 16 if data[2] == 43 else 8]
    following, waiting, num = ImageFileDirectory_v2(header).next, list[int](), 0
    while (waiting or following) and num < _MAX_DIRECTORIES:
        is_page, start = not waiting, waiting.pop(0) if waiting else following
        tags = ImageFileDirectory_v2(header)
        stream = io.BytesIO(data)
        stream.seek(start)
        tags.load(stream)
        if is_page:
            below = tags.get(_BELOW, ())
            waiting, following = list(below if isinstance(below, tuple) else (below,)), tags.next
        num += 1
        yield _Directory(tags, is_page)


def is_cut_tiff(data: bytes) -> bool:
    """Whether a TIFF ends before its first directory (TIFF 6.0, section 2)."""
    if len(data) < 8:
        return True
    order = "<" if data[:2] == b"II" else ">"
    return int(struct.unpack_from(order + "I", data, 4)[0]) + 2 > len(data)


def unknown_tiff(data: bytes) -> str | None:
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
        whole &= len(depths) == samples and depths[0] in _DEPTHS and formats[0] in range(1, 7)
    except Exception:  # a damaged directory may hold any types and values
        return None
    kind = f"photometric interpretation {photometric}, sample format {formats[0]}, {samples} x {depths[0]} bits/pixel"
    return f"a TIFF with compression {compression}, {kind}" if whole else None
