"""What is no picture, or of a format that is not decoded, is told by its first bytes."""

from __future__ import annotations

import struct
import time
import zlib

import pytest

from crackbatch.images.picture import read_image


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 not a picture", "not_an_image"),
        (b"<html><body>404</body></html>" * 9, "not_an_image"),
        (b"\0" * 5000, "not_an_image"),
        (b"8BPS" + b"\0" * 64, "unsupported"),
        (b"\xff\x0a" + b"\0" * 64, "unsupported"),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, status: str) -> None:
    picture = read_image(data)
    assert picture.status == status
    assert picture.error
    assert picture.pixels is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\n", "it is a text, not an image"),
        (b"P6 secret words of a file", "it is a text, not an image"),
        (b"\x01\x02secret\xff" * 9, "its first bytes are those of no image format"),
        (b"%PDF-1.7 secret", "it is a PDF, not an image"),
        (
            b"\xef\xbb\xbf\r\n<!DOCTYPE html><title>secret",
            "it is a web page, such as a server's question for a login, not an image",
        ),
    ],
)
def test_what_is_said_of_a_file_that_is_no_image_shows_none_of_its_bytes(data: bytes, said: str) -> None:
    picture = read_image(data)
    assert (picture.status, picture.error) == ("not_an_image", said)


@pytest.mark.parametrize("side", [9_000, 40_000])
def test_an_ico_with_a_large_picture_inside_is_refused_before_it_is_decoded(side: int) -> None:
    """The directory of an ICO can only give sizes up to 256, so its PNG has its own."""
    rows = zlib.compressobj(9)
    line = bytes(1 + side // 8)
    pixels = b"".join([*(rows.compress(line) for _ in range(side)), rows.flush()])
    chunks = (b"IHDR" + struct.pack(">II5B", side, side, 1, 0, 0, 0, 0), b"IDAT" + pixels, b"IEND")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    entry = struct.pack("<4B2H2I", 0, 0, 0, 0, 1, 1, len(png), 22)
    began = time.process_time()
    picture = read_image(b"\0\0\1\0\1\0" + entry + png, max_megapixels=50)
    assert picture.status == "too_large"
    assert f"{side}x{side}" in str(picture.error)
    assert time.process_time() - began < 0.1
