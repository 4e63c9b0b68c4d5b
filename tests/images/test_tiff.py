"""TIFFs that Pillow cannot decode, and camera raws, are unsupported: no preview is taken for the photo."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from builders.pictures import encode, gradient, pixels, tiff
from crackbatch.images.picture import read_image

UNSUPPORTED_TIFFS = [
    {"bits": (8,) * 5, "photometric": 1},
    {"bits": (8,) * 7, "photometric": 1},
    {"bits": (32,) * 3, "photometric": 2, "sample_format": 3},
    {"bits": (16,), "photometric": 1, "sample_format": 3},
    {"bits": (64,), "photometric": 1, "sample_format": 3},
    {"bits": (12,), "photometric": 0},
    {"bits": (8,) * 3, "photometric": 2, "compression": 34712},  # JPEG 2000
    {"bits": (8,) * 3, "photometric": 2, "compression": 34887},  # LERC
    {"bits": (8,) * 3, "photometric": 2, "compression": 50002},  # JPEG XL
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", UNSUPPORTED_TIFFS)
def test_a_sound_tiff_that_pillow_does_not_know_is_unsupported(options: dict, order: str) -> None:
    sound = tiff(bytes(64 * 48 * 12), 64, 48, order=order, **options)
    picture = read_image(sound)
    assert (picture.status, picture.format) == ("unsupported", "tiff")
    assert str(options.get("compression", options["bits"][0])) in str(picture.error)
    directory = struct.unpack_from(order + "I", sound, 4)[0]
    for cut in (len(sound) // 2, directory + 40, len(sound) - 1):
        assert read_image(sound[:cut]).status in ("truncated", "corrupt")
    size = struct.pack(order + "I", 64 * 48 * 12)
    assert read_image(sound.replace(size, struct.pack(order + "I", 64 * 48 * 13))).status == "corrupt"
    unwritten = len(sound) - directory - 40
    assert read_image(sound[:-unwritten] + bytes(unwritten)).status == "corrupt"


def test_a_bigtiff_that_pillow_does_not_know_is_unsupported() -> None:
    entries = [(256, 8), (257, 8), (258, 64), (259, 1), (262, 1), (273, 16), (277, 1), (278, 8), (279, 512), (339, 3)]
    for order, magic in (("<", b"II+\0"), (">", b"MM\0+")):
        directory = b"".join(struct.pack(order + "HHQHHI", tag, 3, 1, value, 0, 0) for tag, value in entries)
        header = magic + struct.pack(order + "HHQ", 8, 0, 16 + 512)
        whole = header + bytes(512) + struct.pack(order + "Q", len(entries)) + directory + bytes(8)
        assert read_image(whole).status == "unsupported"


def raw(
    kind: int = 1,
    tags: dict[int, int | bytes] | None = None,
    below: dict[int, int | bytes] | None = None,
    below_is_page: bool = False,
) -> bytes:
    """A TIFF whose first picture has 16x12 pixels; `kind` 1 says that it is a preview. `below` has 1600x1200 pixels."""
    preview = gradient(16, 12).convert("L").tobytes()
    at = 8 + len(preview)

    def directory(entries: dict[int, int | bytes], start: int, following: int) -> bytes:
        behind, packed = b"", b""
        end = start + 2 + 12 * len(entries) + 4
        for tag, value in sorted(entries.items()):
            if isinstance(value, int):
                packed += struct.pack("<HHII", tag, 4, 1, value)
            else:
                packed += struct.pack("<HHII", tag, 2, len(value), end + len(behind))
                behind += value + bytes(len(value) % 2)
        return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following) + behind

    first: dict[int, int | bytes] = {254: kind, 256: 16, 257: 12, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 12}
    first |= {279: len(preview), **(tags or {})}
    length = len(directory({**first, **({330: 0} if below and not below_is_page else {})}, at, 0))
    second = {254: 0, 256: 1600, 257: 1200, 259: 1, 262: 32803, 273: at, 277: 1, 279: 100, **(below or {})}
    if below and not below_is_page:
        first[330] = at + length
    whole = b"II*\0" + struct.pack("<I", at) + preview
    whole += directory(first, at, at + length if below_is_page else 0)
    return whole + (directory(second, at + length, 0) if below else b"") + bytes(4000)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (raw(tags={50706: 0x0104, 271: b"DJI\0\0"}, below={262: 32803}), "dng"),
        (raw(tags={50706: 0x0104}, kind=0, below={262: 34892}), "dng"),
        (raw(tags={271: b"NIKON CORPORATION\0"}, below={262: 32803}), "nef"),
        (raw(tags={271: b"SONY\0\0"}, below={262: 32803}), "arw"),
        (raw(tags={271: b"SONY\0\0"}, kind=0, below={262: 32803}), "arw"),
        (raw(tags={271: b"NIKON\0"}, below={262: 6, 259: 7}), "nef"),  # the photo is a JPEG that Pillow cannot reach
        (raw(tags={271: b"Hasselblad\0"}, below={262: 32803}, below_is_page=True), "3fr"),
        (raw(kind=0, below={262: 2}), "raw"),  # a larger picture below the first one
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(400), "cr2"),
        (b"IIRO\x08\0\0\0" + bytes(400), "orf"),
        (b"FUJIFILMCCD-RAW " + bytes(400), "raf"),
        (b"\0\0\0\x18ftypcrx " + bytes(400), "cr3"),
        (b"FOVb" + bytes(400), "x3f"),
    ],
)
def test_a_camera_raw_is_unsupported_and_says_what_to_do(data: bytes, name: str) -> None:
    picture = read_image(data)
    assert (picture.status, picture.format, picture.pixels) == ("unsupported", name, None)
    assert "export JPEGs from it" in str(picture.error)


def test_pictures_beside_the_photo_do_no_harm() -> None:
    small = pixels(read_image(raw(kind=0)))
    assert np.array_equal(small, np.asarray(gradient(16, 12).convert("L").convert("RGB")))
    # A preview is all that this file has, and a mask of a smaller size lies below the photo of that one.
    assert np.array_equal(pixels(read_image(raw(kind=1))), small)
    assert np.array_equal(pixels(read_image(raw(kind=0, below={256: 8, 257: 6, 262: 1}))), small)


def test_a_preview_on_the_first_page_is_not_taken_for_the_photo_on_the_next() -> None:
    photo = gradient(640, 480)
    data = bytearray(encode(gradient(64, 48), "TIFF", save_all=True, append_images=[photo], tiffinfo={254: 1}))
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0])
    assert struct.unpack_from("<HHII", data, second + 2) == (254, 4, 1, 1)
    struct.pack_into("<I", data, second + 10, 0)  # only the first page is a preview
    assert np.array_equal(pixels(read_image(bytes(data))), np.asarray(photo))


def test_tiles_that_are_larger_than_their_picture_are_refused_before_they_take_memory() -> None:
    """A decoder allocates a whole tile, and the header of a tiny file may give it any size."""
    side = 32_768
    entries = [
        (256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 200), (325, 4, 1, 20),
    ]  # fmt: skip
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    picture = read_image(data.ljust(200, b"\0") + zlib.compress(bytes(1 << 20))[:20])
    assert picture.status == "corrupt"
    assert picture.error == "its tiles have 1,073,741,824 pixels, and the picture has 4,096"
