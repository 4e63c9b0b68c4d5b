"""An image that is cut off, endless, damaged or of an unknown kind has a status that says so."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import pytest

from builders.pictures import encode, gradient, pixels, tiff
from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import read_image


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_off_anywhere_is_truncated(share: float, progressive: bool) -> None:
    whole = encode(PIL.Image.open(io.BytesIO(draw_tile(3, True))), "JPEG", progressive=progressive)
    picture = read_image(whole[: int(len(whole) * share)])
    assert (picture.status, picture.pixels) == ("truncated", None)
    assert picture.error


def test_a_thumbnails_end_is_not_the_pictures_end() -> None:
    thumbnail = encode(gradient(32, 24), "JPEG")
    whole = draw_tile(4, True)
    with_thumbnail = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole[2:]
    assert read_image(with_thumbnail).status == "ok"
    assert read_image(with_thumbnail[:-400]).status == "truncated"


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm() -> None:
    assert read_image(draw_tile(5, False) + b"\0" * 4096 + b"trailer of a phone").status == "ok"


def test_a_jpeg_of_endless_scans_is_not_decoded() -> None:
    whole = encode(gradient(), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    assert read_image(whole[:-2] + whole[last:-2] * 200 + b"\xff\xd9").status == "corrupt"


def test_a_motion_photo_is_its_photo() -> None:
    film = struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + np.random.default_rng(0).bytes(16 << 20)
    assert film.count(b"\xff\xda") > 100
    photo = draw_tile(3, True)
    assert np.array_equal(pixels(read_image(photo + film)), pixels(read_image(photo)))


@pytest.mark.parametrize("before", [b"\xff\xfe\0\4\xff\xd9", b"garbage", b"\xff\xd0"])
def test_endless_scans_do_not_hide_behind_what_a_decoder_steps_over(before: bytes) -> None:
    whole = encode(gradient(), "JPEG", progressive=True)
    first, last = whole.index(b"\xff\xda"), whole.rindex(b"\xff\xda")
    scans = whole[last:-2] * 200 + b"\xff\xd9"
    assert read_image(whole[:-2] + before + scans).error == "the JPEG has more than 100 scans"
    assert read_image(whole[:first] + before + whole[first:-2] + scans).error == "the JPEG has more than 100 scans"


def test_a_webp_whose_end_was_never_written_is_truncated() -> None:
    whole = encode(PIL.Image.open(io.BytesIO(draw_tile(7, True))), "WEBP")
    assert read_image(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)).status == "truncated"


def test_zeros_behind_the_pixels_of_a_webp_do_no_harm() -> None:
    original = PIL.Image.open(io.BytesIO(draw_tile(7, True)))
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + bytes(1000)  # a UserComment that was left empty
    commented = encode(original, "WEBP", exif=exif)
    assert commented.endswith(bytes(1000))
    expected = pixels(read_image(encode(original, "WEBP")))
    assert np.array_equal(pixels(read_image(commented)), expected)
    assert np.array_equal(pixels(read_image(encode(original, "WEBP") + bytes(4096))), expected)


def test_an_animated_webp_that_was_written_up_to_its_second_frame_is_truncated() -> None:
    first = PIL.Image.open(io.BytesIO(draw_tile(7, True)))
    whole = encode(first, "WEBP", save_all=True, append_images=[first.rotate(90)])
    written = whole.rindex(b"ANMF")
    for missing in (0, 100, 1000):  # of the first frame
        unwritten = len(whole) - written + missing
        assert read_image(whole[:-unwritten] + bytes(unwritten)).status == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "GIF", "HEIF", "AVIF"])
def test_other_formats_cut_in_half_are_truncated(kind: str) -> None:
    whole = encode(PIL.Image.open(io.BytesIO(draw_tile(6, True))), kind)
    assert read_image(whole[: len(whole) // 2]).status == "truncated"


UNSUPPORTED_TIFFS = [
    {"bits": (8,) * 5, "photometric": 1},
    {"bits": (8,) * 7, "photometric": 1},
    {"bits": (32,) * 3, "photometric": 2, "sample_format": 3},
    {"bits": (16,), "photometric": 1, "sample_format": 3},
    {"bits": (64,), "photometric": 1, "sample_format": 3},
    {"bits": (16,), "photometric": 32803},  # a camera's raw
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


@pytest.mark.parametrize(
    ("frame", "bits", "components"),
    [(0xC1, 12, 1), (0xC1, 12, 3), (0xC3, 16, 1), (0xF7, 8, 1), (0xC5, 8, 1), (0xC0, 8, 2)],
)
def test_a_jpeg_of_a_kind_that_pillow_does_not_know_is_unsupported(frame: int, bits: int, components: int) -> None:
    kinds = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    header = struct.pack(">HBHHB", 8 + len(kinds), bits, 48, 64, components) + kinds
    whole = b"\xff\xd8\xff" + bytes([frame]) + header + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(200) + b"\xff\xd9"
    picture = read_image(whole)
    assert (picture.status, picture.format) == ("unsupported", "jpeg")
    assert read_image(whole[:-2]).status == "truncated"
    assert read_image(whole.replace(header[:2], b"\0\x30", 1)).status == "corrupt"


def test_a_png_with_a_damaged_byte_is_corrupt() -> None:
    data = bytearray(encode(gradient(), "PNG"))
    at = data.index(b"IDAT") + 40
    data[at] ^= 0xFF
    assert read_image(bytes(data)).status == "corrupt"
