"""One way from bytes to pixels: formats, depths, colours and sizes give the picture that was saved."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from builders.pictures import encode, gradient, pixels, tiff
from crackbatch.images.picture import read_image, to_input


@pytest.mark.parametrize(
    ("kind", "options", "name", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, "jpeg", 6),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, "jpeg", 6),
        ("PNG", {}, "png", 0),
        ("TIFF", {}, "tiff", 0),
        ("TIFF", {"compression": "tiff_lzw"}, "tiff", 0),
        ("BMP", {}, "bmp", 0),
        ("WEBP", {"lossless": True}, "webp", 0),
        ("GIF", {}, "gif", 40),
        ("HEIF", {"quality": 95}, "heif", 24),
        ("AVIF", {"quality": 95}, "avif", 24),
        ("JPEG2000", {}, "jpeg2000", 0),
    ],
)
def test_formats_give_the_picture_that_was_saved(kind: str, options: dict, name: str, tolerance: int) -> None:
    original = gradient()
    picture = read_image(encode(original, kind, **options))
    assert np.abs(pixels(picture) - np.asarray(original)).max() <= tolerance
    assert (picture.format, picture.width, picture.height) == (name, 64, 48)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    samples = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    expected = np.round(samples / 257).astype(int)
    for kind in ("PNG", "TIFF"):
        grey = pixels(read_image(encode(PIL.Image.fromarray(samples), kind)))
        assert np.abs(grey[..., 0] - expected).max() <= 1, kind
        assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(
    ("bits", "white_is_zero"),
    [(1, False), (1, True), (4, False), (4, True), (8, False), (8, True), (12, False), (16, False), (16, True)],
)
def test_grey_tiff_of_any_depth_is_scaled_and_zero_is_black_or_white(
    bits: int, white_is_zero: bool, compression: int
) -> None:
    values = np.linspace(0, 2**bits - 1, 16 * 16).round().astype(int).reshape(16, 16)
    if bits == 16:
        packed = values.astype("<u2").tobytes()
    else:  # the most significant bits first
        packed = np.packbits((values[..., None] >> np.arange(bits)[::-1]) & 1).tobytes()
    strip = zlib.compress(packed) if compression == 8 else packed
    picture = read_image(tiff(strip, 16, 16, (bits,), photometric=int(not white_is_zero), compression=compression))
    expected = values / (2**bits - 1) * 255
    assert np.abs(pixels(picture)[..., 1] - (255 - expected if white_is_zero else expected)).max() <= 1


def test_sixteen_bit_colour_png_is_scaled() -> None:
    values = np.linspace(0, 65_535, 8 * 8 * 3).astype(">u2").reshape(8, 8, 3)
    raw = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.abs(pixels(read_image(png)) - values.astype(float) / 257).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    red = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = PIL.Image.new("LA", (8, 8), (0, 128))
    palette = PIL.Image.new("P", (8, 8), 3)
    palette.putpalette([7, 7, 7] * 256)
    assert (pixels(read_image(encode(red, "PNG"))) == 255).all()
    assert np.abs(pixels(read_image(encode(half, "PNG"))) - 127).max() <= 1
    assert (pixels(read_image(encode(palette, "PNG", transparency=3, bits=8))) == 255).all()


def test_an_alpha_channel_that_says_nothing_does_not_hide_the_picture() -> None:
    original = gradient()
    hidden = original.copy()
    hidden.putalpha(0)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}), ("TGA", {})):
        assert np.array_equal(pixels(read_image(encode(hidden, kind, **options))), np.asarray(original)), kind
    # A bitmap of 32 bits whose header names a mask for alpha (BITMAPV4HEADER), as camera software writes it.
    flipped = np.asarray(original)[::-1, :, ::-1]
    samples = np.concatenate([flipped, np.zeros((48, 64, 1), np.uint8)], 2).tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, 64, 48, 1, 32, 3, len(samples), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    bitmap = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(samples), 0, 0, 14 + len(header)) + header + samples
    assert np.array_equal(pixels(read_image(bitmap)), np.asarray(original))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    original = gradient().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(pixels(read_image(encode(original, kind))), np.asarray(original.convert("RGB")).astype(int))


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    # Pillow writes CMYK JPEGs as Adobe does, inverted and marked.
    white = PIL.Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    data = encode(white, "JPEG", quality=95)
    assert b"Adobe" in data
    assert pixels(read_image(data)).min() > 250


def test_first_frame_of_several_is_taken() -> None:
    first, second = PIL.Image.new("RGB", (9, 9), (200, 10, 10)), PIL.Image.new("RGB", (9, 9), (10, 200, 10))
    for kind in ("TIFF", "GIF"):
        seen = pixels(read_image(encode(first, kind, save_all=True, append_images=[second])))
        assert seen[0, 0, 0] > 150 > seen[0, 0, 1], kind


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_in_planes_gives_its_own_pixels_or_none(order: str) -> None:
    original = np.asarray(gradient())
    for kind in ("u1", "u2"):
        scaled = original.astype(order + kind) * (257 if kind == "u2" else 1)
        planes = [plane.tobytes() for plane in scaled.transpose(2, 0, 1)]
        for compression in (1, 8):
            packed = [zlib.compress(plane) for plane in planes] if compression == 8 else planes
            depth = 8 * scaled.itemsize
            picture = read_image(
                tiff(packed, 64, 48, (depth,) * 3, photometric=2, compression=compression, order=order)
            )
            if (depth, compression) == (16, 1):
                assert (picture.status, picture.pixels) == ("unsupported", None)
            else:
                assert np.array_equal(pixels(picture), original)


def test_a_tiff_whose_codec_this_pillow_lacks_is_unsupported() -> None:
    original = gradient()
    webp = encode(original, "WEBP", lossless=True)
    picture = read_image(tiff(webp, 64, 48, (8, 8, 8), photometric=2, compression=50001))
    if picture.status == "ok":
        assert np.array_equal(pixels(picture), np.asarray(original))
    else:
        assert (picture.status, "webp" in str(picture.error)) == ("unsupported", True)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    # A PNG that says 60,000 x 60,000 and has no pixels: decoding it would fail in another way, and take 10 GB.
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    picture = read_image(bomb)
    assert picture.status == "too_large"
    assert (picture.width, picture.height) == (60_000, 60_000)
    assert read_image(encode(gradient(100, 100), "PNG"), max_megapixels=0.009).status == "too_large"
    assert read_image(encode(gradient(100, 100), "PNG"), max_megapixels=0.01).status == "ok"


@pytest.mark.parametrize("width", [2**31, 2**32 - 16])
def test_a_size_that_no_column_holds_is_left_out(width: int) -> None:
    header = struct.pack("<IIIHHIIIIII", 40, width, 4, 1, 24, 0, 0, 0, 0, 0, 0)
    picture = read_image(b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + header + bytes(100))
    assert (picture.status, picture.width, picture.height) == ("too_large", None, None)


def test_a_picture_too_long_to_be_scaled_is_too_large() -> None:
    line = encode(PIL.Image.new("1", (140_000_000, 1)), "PNG")
    picture = read_image(line)
    assert (picture.status, picture.width, picture.height) == ("too_large", 140_000_000, 1)
    with pytest.raises(MemoryError):
        PIL.Image.new("L", (140_000_000, 1)).resize((224, 224), PIL.Image.Resampling.BILINEAR)


def test_the_network_sees_the_whole_picture() -> None:
    picture = read_image(encode(gradient(640, 320), "PNG"))
    scaled = to_input(picture, 224)
    assert (scaled.shape, scaled.dtype) == ((224, 224, 3), np.uint8)
    corners = np.asarray(picture.pixels)[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert np.abs(scaled[[0, 0, -1, -1], [0, -1, 0, -1]] - corners).max() < 4
