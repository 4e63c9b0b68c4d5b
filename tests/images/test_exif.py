"""EXIF says which side is up, when, where and with what; senseless EXIF costs nothing but itself."""

from __future__ import annotations

import struct

import numpy as np
import PIL.Image
import pytest
from PIL.TiffImagePlugin import IFDRational

from builders.pictures import encode, gradient, pixels
from crackbatch.images.picture import read_image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_give_the_same_upright_pixels(orientation: int) -> None:
    undo = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    upright = gradient()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture = read_image(encode(stored, "PNG", exif=exif))
    assert np.array_equal(pixels(picture), np.asarray(upright))
    assert (picture.width, picture.height) == upright.size


def test_exif_tells_when_where_and_with_what() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x0110] = "DJI", "FC3582"
    details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    details[0x9003], details[0x9291] = "2026:05:04 03:02:01", "25"
    place.update({1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 0.0)})
    picture = read_image(encode(gradient(), "JPEG", exif=exif))
    assert str(picture.captured_at) == "2026-05-04 03:02:01.250000"
    assert picture.latitude == pytest.approx(-33.86)
    assert picture.longitude == pytest.approx(151.2)
    assert picture.camera == "DJI FC3582"


def test_senseless_exif_costs_nothing_but_itself() -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    exif.get_ifd(0x8825).update({1: "N", 2: (400.0, 0.0, 0.0), 3: "E", 4: (1.0, 1.0, 1.0)})
    picture = read_image(encode(gradient(), "JPEG", exif=exif))
    assert picture.status == "ok"
    assert (picture.captured_at, picture.latitude, picture.longitude) == (None, None, None)


def test_no_fix_is_no_position() -> None:
    here, zero, nothing = (48.0, 8.0, 12.0), (0.0, 0.0, 0.0), (IFDRational(0, 0),) * 3
    for latitude, longitude, status in ((zero, zero, None), (nothing, nothing, None), (here, here, "V")):
        exif = PIL.Image.Exif()
        exif[0x010F] = "DJI"
        place = exif.get_ifd(0x8825)
        place.update({1: "N", 2: latitude, 3: "E", 4: longitude})
        if status:
            place[9] = status
        picture = read_image(encode(gradient(), "JPEG", exif=exif))
        assert (picture.latitude, picture.longitude, picture.camera) == (None, None, "DJI")


def test_a_place_on_the_equator_is_a_position() -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (0.0, 0.0, 0.0), 3: "W", 4: (78.0, 30.0, 0.0), 9: "A"})
    picture = read_image(encode(gradient(), "JPEG", exif=exif))
    assert (picture.latitude, picture.longitude) == (0, -78.5)


def test_a_senseless_exif_tag_beside_the_orientation_costs_nothing() -> None:
    # Orientation 6, and an XResolution that is text where a fraction should be.
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHL4s", 0x011A, 2, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4)
    upright = gradient()
    picture = read_image(encode(upright.transpose(PIL.Image.Transpose.ROTATE_90), "PNG", exif=exif))
    assert np.array_equal(pixels(picture), np.asarray(upright))


def test_the_name_of_a_camera_is_short_and_printable() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x0110] = "\x1b[31mDJI\n", "X" * 60_000
    camera = read_image(encode(gradient(), "JPEG", exif=exif)).camera
    assert camera is not None
    assert camera.isprintable()
    assert camera.startswith("[31mDJI X")
    assert len(camera) == 100
