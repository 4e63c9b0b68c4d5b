"""One way from bytes to pixels: formats, orientations, depths, and a status for everything that is no picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pillow_heif
import pytest

from crackbatch.cli.demo import draw_tile
from crackbatch.images.picture import Picture, read_image, to_input

pillow_heif.register_heif_opener()


def gradient(width: int = 64, height: int = 48) -> PIL.Image.Image:
    """Every corner another colour, so that a turned or mirrored picture is told from the upright one."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(
    strip: bytes | list[bytes],
    width: int,
    height: int,
    bits: tuple[int, ...],
    photometric: int,
    compression: int = 1,
    sample_format: int = 1,
    order: str = "<",
) -> bytes:
    """A TIFF of one strip, or of one for each plane, also of kinds that Pillow does not write (TIFF 6.0, section 2)."""
    strips = [strip] if isinstance(strip, bytes) else strip
    strip = b"".join(strips)
    starts = tuple(8 + sum(map(len, strips[:plane])) for plane in range(len(strips)))
    shorts = {258: bits, 259: (compression,), 262: (photometric,), 277: (len(bits),), 339: (sample_format,) * len(bits)}
    shorts[284] = (1 if len(strips) == 1 else 2,)
    longs = {256: (width,), 257: (height,), 273: starts, 278: (height,), 279: tuple(map(len, strips))}
    entries = [(tag, 3, values) for tag, values in shorts.items()] + [(tag, 4, longs[tag]) for tag in longs]
    strip += bytes(len(strip) % 2)
    directory, behind = struct.pack(order + "H", len(entries)), b""
    end = 8 + len(strip) + 2 + 12 * len(entries) + 4
    for tag, kind, values in sorted(entries):
        value = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(value) > 4:
            value, behind = struct.pack(order + "I", end + len(behind)), behind + value
        directory += struct.pack(order + "HHI4s", tag, kind, len(values), value)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(order + "I", 8 + len(strip)) + strip + directory + bytes(4) + behind


def pixels(picture: Picture) -> np.ndarray:
    assert picture.status == "ok", picture.error
    return np.asarray(picture.pixels).astype(int)


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
    assert read_image(whole[:-2] + before + scans).error == "more than 100 scans in one JPEG"
    assert read_image(whole[:first] + before + whole[first:-2] + scans).error == "more than 100 scans in one JPEG"


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


def test_a_senseless_exif_tag_beside_the_orientation_costs_nothing() -> None:
    # Orientation 6, and an XResolution that is text where a fraction should be.
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHL4s", 0x011A, 2, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4)
    upright = gradient()
    picture = read_image(encode(upright.transpose(PIL.Image.Transpose.ROTATE_90), "PNG", exif=exif))
    assert np.array_equal(pixels(picture), np.asarray(upright))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "GIF", "HEIF", "AVIF"])
def test_other_formats_cut_in_half_are_truncated(kind: str) -> None:
    whole = encode(PIL.Image.open(io.BytesIO(draw_tile(6, True))), kind)
    assert read_image(whole[: len(whole) // 2]).status == "truncated"


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


def test_a_bigtiff_that_pillow_does_not_know_is_unsupported() -> None:
    entries = [(256, 8), (257, 8), (258, 64), (259, 1), (262, 1), (273, 16), (277, 1), (278, 8), (279, 512), (339, 3)]
    for order, magic in (("<", b"II+\0"), (">", b"MM\0+")):
        directory = b"".join(struct.pack(order + "HHQHHI", tag, 3, 1, value, 0, 0) for tag, value in entries)
        header = magic + struct.pack(order + "HHQ", 8, 0, 16 + 512)
        whole = header + bytes(512) + struct.pack(order + "Q", len(entries)) + directory + bytes(8)
        assert read_image(whole).status == "unsupported"


def test_a_tiff_whose_codec_this_pillow_lacks_is_unsupported() -> None:
    original = gradient()
    webp = encode(original, "WEBP", lossless=True)
    picture = read_image(tiff(webp, 64, 48, (8, 8, 8), photometric=2, compression=50001))
    if picture.status == "ok":
        assert np.array_equal(pixels(picture), np.asarray(original))
    else:
        assert (picture.status, "webp" in str(picture.error)) == ("unsupported", True)


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
