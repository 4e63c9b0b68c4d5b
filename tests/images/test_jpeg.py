"""A JPEG that is cut off, damaged inside, endless or of an unknown kind says so; a sound one is ok."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from builders.pictures import encode, gradient, pixels
from builders.places import SHARED
from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import read_image

END = b"\xff\xd9"


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    """A picture of 800 x 800 pixels with as much detail as a photograph."""
    tiles = [PIL.Image.open(io.BytesIO(draw_tile(number, number % 2 == 0))).resize((200, 200)) for number in range(16)]
    whole = PIL.Image.new("RGB", (800, 800))
    for number, tile in enumerate(tiles):
        whole.paste(tile, (number % 4 * 200, number // 4 * 200))
    return whole


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


KINDS = [{"quality": 90}, {"quality": 80, "progressive": True}, {"quality": 90, "restart_marker_blocks": 50}]


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"another"])
@pytest.mark.parametrize("options", KINDS, ids=["plain", "progressive", "restarts"])
def test_a_bad_sector_inside_the_scan_is_corrupt(photo: PIL.Image.Image, options: dict, fill: bytes) -> None:
    whole = encode(photo, "JPEG", **options)
    sound = pixels(read_image(whole))
    first, size = whole.index(b"\xff\xda") + 20, 8192
    for share in (0.05, 0.3, 0.6):
        at = first + int(share * (len(whole) - first))
        damaged = whole[:at] + (fill * size)[:size] + whole[at + size :]
        picture = read_image(damaged)
        if picture.status == "ok":  # the last bits of progressive coefficients, which may have any values
            assert options.get("progressive")
            assert (np.abs(pixels(picture) - sound).max(2) > 8).mean() < 0.02
        else:
            assert picture.status == "corrupt", share


def test_zeros_of_a_sector_inside_the_scan_are_found_if_the_decoder_finds_its_way_back(photo: PIL.Image.Image) -> None:
    whole = encode(photo, "JPEG", quality=90)
    first = whole.index(b"\xff\xda") + 20
    found = [
        read_image(whole[:at] + bytes(512) + whole[at + 512 :]).status
        for at in range(first, len(whole) - 1024, (len(whole) - first) // 40)
    ]
    assert set(found) == {"corrupt"}


def test_a_jpeg_that_goes_on_as_another_one_is_corrupt(photo: PIL.Image.Image) -> None:
    whole = encode(photo, "JPEG")
    assert read_image(whole[: len(whole) // 2] + whole).status == "corrupt"


@pytest.mark.parametrize("options", KINDS, ids=["plain", "progressive", "restarts"])
def test_a_jpeg_without_its_end_marker_is_ok_if_every_block_is_there(photo: PIL.Image.Image, options: dict) -> None:
    whole = encode(photo, "JPEG", **options)
    expected = pixels(read_image(whole))
    assert np.array_equal(pixels(read_image(whole[:-2])), expected)
    assert np.array_equal(pixels(read_image(whole[:-2] + bytes(3000))), expected)  # the rest of a sector
    assert read_image(whole[:-40]).status == "truncated"
    assert read_image(whole[: len(whole) // 2] + bytes(len(whole) // 2)).status in ("truncated", "corrupt")


def test_a_progressive_jpeg_that_ends_after_one_of_its_scans_is_truncated(photo: PIL.Image.Image) -> None:
    whole = encode(photo, "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    tables = [whole.rfind(b"\xff\xc4", 0, scan) for scan in scans[1:]]
    for end in {*scans[1:], *tables}:
        assert read_image(whole[:end]).status == "truncated"


def test_fill_bytes_and_odd_headers_of_cameras_do_no_harm(photo: PIL.Image.Image) -> None:
    whole = encode(photo, "JPEG")
    expected = pixels(read_image(whole))
    scan = whole.index(b"\xff\xda")
    parameters = scan + 5 + 2 * whole[scan + 4]
    odd = {
        "fill before the end": whole[:-2] + bytes(2000) + END,
        "two bytes before the end": whole[:-2] + b"\x12\x34" + END,
        "fill before a marker": whole[:-2] + b"\xff" * 7 + END,
        "a revision of the future": whole.replace(b"JFIF\0\1", b"JFIF\0\7", 1),
        "the scan's parameters": whole[:parameters] + bytes(3) + whole[parameters + 3 :],
        "a trailer": whole + b"SEFT" + bytes(100),
    }
    for name, data in odd.items():
        assert data != whole
        assert np.array_equal(pixels(read_image(data)), expected), name


def test_even_areas_are_not_taken_for_a_bad_sector() -> None:
    # Optimised tables give the codes of even blocks only zeros.
    even = PIL.Image.new("RGB", (3000, 2000), (255, 255, 255))
    even.paste(PIL.Image.open(io.BytesIO(draw_tile(1, True))), (0, 0))
    data = encode(even, "JPEG", optimize=True)
    assert bytes(64) in data[data.index(b"\xff\xda") :]
    assert read_image(data).status == "ok"


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(photo: PIL.Image.Image, mode: str, options: dict) -> None:
    data = encode(photo.convert(mode), "JPEG", **options)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(read_image(data)), expected)


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not here")
def test_sound_files_of_cameras_are_ok() -> None:
    with zipfile.ZipFile(SHARED / "metu.zip") as archive:
        data = [archive.read(name) for name in archive.namelist()[::40]]
    with tarfile.open(SHARED / "sdnet.tar") as archive:
        data += [archive.extractfile(member).read() for member in list(archive)[::40] if member.isfile()]  # type: ignore[union-attr]
    data += [path.read_bytes() for path in (SHARED / "photos").glob("*.jpg")]
    found = [read_image(image).status for image in data if image.startswith(b"\xff\xd8")]
    assert len(found) > 300
    assert set(found) == {"ok"}
