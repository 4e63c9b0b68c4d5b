"""An image that is cut off, endless, damaged or of an unknown kind has a status that says so."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from builders.pictures import encode, pixels
from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import read_image


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
