"""A PNG with damaged pixels says so; what is written beside the pixels does no harm."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL import PngImagePlugin

from builders.pictures import encode, gradient, pixels
from crackbatch.images.picture import read_image


def test_a_png_with_a_damaged_byte_is_corrupt() -> None:
    data = bytearray(encode(gradient(), "PNG"))
    at = data.index(b"IDAT") + 40
    data[at] ^= 0xFF
    assert read_image(bytes(data)).status == "corrupt"


def _chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


LONG = "history " * 5_000_000
CHUNKS = {
    "a long text": _chunk(b"zTXt", b"Description\0\0" + zlib.compress(LONG.encode())),
    "a long text as it is": _chunk(b"tEXt", b"Comment\0" + b"x" * 20_000_000),
    "a long XMP": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG.encode())),
    "many texts": b"".join(_chunk(b"zTXt", b"n%d\0\0" % n + zlib.compress(bytes(900_000))) for n in range(100)),
    "a long profile": _chunk(b"iCCP", b"camera\0\0" + zlib.compress(bytes(5_000_000))),
    "a damaged profile": _chunk(b"iCCP", b"camera\0\0garbage"),
    "a short gamma": _chunk(b"gAMA", b"1"),
    "a wrong checksum": _chunk(b"tEXt", b"Comment\0text", checksum=1),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_what_stands_beside_the_pixels_does_no_harm(name: str, before: bytes) -> None:
    whole = encode(gradient(), "PNG")
    at = whole.rindex(before) - 4
    assert np.array_equal(pixels(read_image(whole[:at] + CHUNKS[name] + whole[at:])), np.asarray(gradient()))


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_the_orientation_in_a_text_still_counts(size: int) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="3"/>{" " * size}', zip=True)
    turned = gradient().transpose(PIL.Image.Transpose.ROTATE_180)
    assert np.array_equal(pixels(read_image(encode(turned, "PNG", pnginfo=info))), np.asarray(gradient()))


def test_transparency_still_counts() -> None:
    palette = PIL.Image.new("P", (8, 8), 3)
    palette.putpalette([7, 7, 7] * 256)
    palette.putpixel((0, 0), 1)
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", "x")
    seen = pixels(read_image(encode(palette, "PNG", transparency=3, bits=8, pnginfo=info)))
    assert (seen[0, 0].tolist(), seen[4, 4].tolist()) == ([7, 7, 7], [255, 255, 255])
