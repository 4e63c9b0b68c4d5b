"""From encoded bytes to pixels: the only decoder, used by scoring, training and evaluation alike.

`read_image` never raises for a bad image. It returns a `Picture` whose `status` says what the bytes are, because a
picture that cannot be scored is a row of the table like any other.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import numpy as np
import pi_heif
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from crackbatch.structure import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PLANAR,
    WHITE_IS_ZERO,
    Refused,
    check_structure,
    is_cut,
    unknown_kind,
)  # fmt: skip

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif", ".avif", ".gif"]
)
DEFAULT_MAX_MEGAPIXELS = 200.0
NO_MEMORY = "not enough memory to decode it"

pi_heif.register_heif_opener(thumbnails=False)

# Pillow's own limit would refuse what `max_megapixels` allows, and this one is read from the header just the same.
PIL.Image.MAX_IMAGE_PIXELS = None

# Pillow's plug-ins that may see untrusted bytes. Left out are the ones that start other programs (EPS) or follow
# paths written in the file.
_PILLOW_FORMATS = frozenset(
    "JPEG MPO PNG TIFF BMP DIB WEBP GIF HEIF AVIF JPEG2000 PPM ICO TGA PCX SGI".split()  # noqa: SIM905
)

_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (  # (bytes, where they stand, format)
    (b"\xff\xd8\xff", 0, "jpeg"),
    (b"\x89PNG\r\n\x1a\n", 0, "png"),
    (b"II*\x00", 0, "tiff"),
    (b"MM\x00*", 0, "tiff"),
    (b"II+\x00", 0, "tiff"),
    (b"BM", 0, "bmp"),
    (b"GIF87a", 0, "gif"),
    (b"GIF89a", 0, "gif"),
    (b"WEBP", 8, "webp"),
    (b"ftypavif", 4, "avif"),
    (b"ftypavis", 4, "avif"),
    (b"ftyphei", 4, "heif"),
    (b"ftyphev", 4, "heif"),
    (b"ftypmif1", 4, "heif"),
    (b"ftypmsf1", 4, "heif"),
    (b"\x00\x00\x00\x0cjP  ", 0, "jpeg2000"),
    (b"\xff\x4f\xff\x51", 0, "jpeg2000"),
)
_KNOWN_BUT_UNSUPPORTED: tuple[tuple[bytes, int, str], ...] = (
    (b"\xff\x0a", 0, "jpeg-xl"),
    (b"\x00\x00\x00\x0cJXL ", 0, "jpeg-xl"),
    (b"MM\x00+", 0, "big-endian bigtiff"),
    (b"8BPS", 0, "psd"),
    (b"\x76\x2f\x31\x01", 0, "openexr"),
    (b"II\xbc\x01", 0, "jpeg-xr"),
    (b"ftypcrx ", 4, "cr3"),
    (b"FUJIFILMCCD-RAW", 0, "raf"),
    (b"IIRO", 0, "orf"),
    (b"IIU\x00", 0, "rw2"),
)


# EXIF 2.32, 4.6.4 A: what turns the stored picture upright.
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_MAX_SIDE = 1 << 26  # Pillow scales none that is twice as long


@dataclass(slots=True)
class Picture:
    """One image, or why there is none.

    `pixels` is an RGB Pillow image after EXIF orientation, None unless `status` is `ok`; width and height are in
    pixels after orientation; latitude and longitude are degrees of the camera's position (WGS 84, as EXIF has it).
    """

    status: str = "ok"
    error: str | None = None
    pixels: PIL.Image.Image | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    captured_at: datetime | None = None
    latitude: float | None = None
    longitude: float | None = None
    camera: str | None = None


def read_image(data: bytes, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Decode one encoded image to upright RGB; a bad one comes back with its status and the cause, never raised."""
    if not data:
        return Picture("empty", "no bytes")
    known = _match(data, _SIGNATURES)
    if known is None and (other := _match(data, _KNOWN_BUT_UNSUPPORTED)):
        return Picture("unsupported", f"{other} cannot be decoded here", format=other)
    picture = Picture(format=known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF, which is read leniently below
        try:
            _decode(data, max_megapixels, picture)
        except Refused as refusal:
            picture.status, picture.error = refusal.args
        except MemoryError:
            picture.status, picture.error = "failed", NO_MEMORY
        except Exception as error:  # decoders raise whatever they like: struct.error, SyntaxError, KeyError, …
            picture.status, picture.error = _diagnose(data, known, error)
    if picture.status != "ok":
        picture.pixels = None
    return picture


def from_pillow(image: PIL.Image.Image) -> Picture:
    """The same of an image that Pillow has opened: upright RGB, or why not."""
    picture = Picture()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _load(image, picture)
    except Refused as refusal:
        picture.status, picture.error = refusal.args
    except MemoryError:
        picture.status, picture.error = "failed", NO_MEMORY
    except Exception as error:  # decoders raise whatever they like, and Pillow decodes when pixels are asked for
        picture.status, picture.error = "corrupt", str(error) or type(error).__name__
    return picture


def to_input(picture: Picture, size: int) -> np.ndarray:
    """Scale an `ok` picture to the network's input: (size, size, 3) uint8, the whole picture, aspect not kept."""
    assert picture.pixels is not None
    scaled = picture.pixels
    if scaled.size != (size, size):
        scaled = scaled.resize((size, size), PIL.Image.Resampling.BILINEAR)
    return np.asarray(scaled)


def _decode(data: bytes, max_megapixels: float, picture: Picture) -> None:
    with PIL.Image.open(io.BytesIO(data), formats=_formats()) as image:
        picture.format = _format_name(image.format)
        _note_size(picture, image)
        if (megapixels := image.width * image.height / 1e6) > max_megapixels:
            raise Refused(
                "too_large",
                f"{image.width}x{image.height} are {megapixels:.1f} megapixels, more than the {max_megapixels:g}"
                " allowed (--max-megapixels)",
            )
        if max(image.size) > _MAX_SIDE:
            raise Refused("too_large", f"{image.width}x{image.height}: no side may be longer than {_MAX_SIDE:,} pixels")
        check_structure(data, picture.format)
        _read_exif(image, picture)
        _load(image, picture)


def _load(image: PIL.Image.Image, picture: Picture) -> None:
    """Fill in the upright RGB pixels and their size."""
    if isinstance(image, TiffImageFile):
        _check_tiff(image)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    shallow = _to_eight_bits(image) if image.mode.startswith("I;16") else image
    upright = shallow.transpose(turn) if turn is not None else shallow
    _note_size(picture, upright)
    picture.pixels = _to_rgb(upright)


def _note_size(picture: Picture, image: PIL.Image.Image) -> None:
    """Fill in the size; a damaged header says anything, and what no column of the table holds is left null."""
    if max(image.size) < 2**31:
        picture.width, picture.height = image.size


@cache
def _formats() -> list[str]:
    """The permitted formats that this Pillow can read; it knows only a few before it is asked to load its plug-ins."""
    PIL.Image.init()
    return sorted(_PILLOW_FORMATS & PIL.Image.OPEN.keys())


def _check_tiff(image: TiffImageFile) -> None:
    """Refuse a TIFF that Pillow opens, but cannot decode, or not to the right pixels."""
    compression, tags = image.info.get("compression"), image.tag_v2
    if not _has_codec(compression):
        raise Refused("unsupported", f"a TIFF of compression {compression} cannot be decoded here")
    # Pillow reads each byte of such a plane as a sample.
    if compression == "raw" and tags.get(PLANAR) == 2 and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8:
        raise Refused("unsupported", "a TIFF of uncompressed planes of more than 8 bits cannot be decoded here")


@cache
def _has_codec(compression: object) -> bool:
    """Whether Pillow's libtiff was built with a codec that may be left out; it says so when it is asked to write."""
    if compression not in ("lzma", "zstd", "webp"):
        return True
    try:
        PIL.Image.new("RGB", (1, 1)).save(io.BytesIO(), "TIFF", compression=compression)
    except OSError:
        return False
    return True


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF orientation, 1 where there is none: Pillow's `exif_transpose` would refuse a picture for another tag."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any Pillow mode of 8 bits to RGB: transparency goes onto white."""
    if image.mode in ("I", "F"):
        raise Refused("unsupported", f"32-bit samples (Pillow mode {image.mode}) have no defined white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale 16-bit grey to 8; a TIFF's may be of 12 bits, and its white may be 0: Pillow leaves both as they are."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    samples = np.asarray(image).astype(np.uint32)
    scaled = ((samples * 255 + white // 2) // white).astype(np.uint8)
    return PIL.Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)


def _format_name(pillow_format: str | None) -> str:
    # An MPO is a JPEG with further views behind it (drones, phones); its first view is the photo.
    names = {"MPO": "jpeg", "DIB": "bmp"}
    return names.get(pillow_format or "", (pillow_format or "").lower())


def _match(data: bytes, signatures: tuple[tuple[bytes, int, str], ...]) -> str | None:
    for magic, offset, name in signatures:
        if data.startswith(magic, offset):
            return name
    return None


def _diagnose(data: bytes, known: str | None, error: Exception) -> tuple[str, str]:
    """Status and message of bytes that the decoder refused."""
    message = str(error) or type(error).__name__
    if isinstance(error, PIL.UnidentifiedImageError):
        message = f"its header says {known}, but it cannot be read as one" if known else _describe(data)
    if known is None:
        return "not_an_image", message
    if known in ("heif", "avif") and "codec" in message.lower():
        return "unsupported", message
    cut = is_cut(data, known) or "truncated" in message.lower() or isinstance(error, EOFError)
    if not cut and (kind := unknown_kind(data, known, error)):
        return "unsupported", f"{kind} cannot be decoded here"
    return ("truncated" if cut else "corrupt"), message


def _describe(data: bytes) -> str:
    start = data[:16]
    text = start.decode("ascii", "replace") if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start) else None
    return (
        f"no image format starts with {text!r}" if text else f"no image format starts with bytes {start[:8].hex(' ')}"
    )


def _read_exif(image: PIL.Image.Image, picture: Picture) -> None:
    """Fill in time, place and camera; EXIF is written by anything, so what makes no sense is left null."""
    try:
        exif = image.getexif()
        if not exif:
            return
        details = exif.get_ifd(0x8769)
        picture.captured_at = _exif_time(details.get(0x9003) or details.get(0x9004), details.get(0x9291))
        picture.camera = _exif_camera(exif.get(0x010F), exif.get(0x0110))
        place = exif.get_ifd(0x8825)
        latitude = _exif_degrees(place.get(2), place.get(1), "S", 90)
        longitude = _exif_degrees(place.get(4), place.get(3), "W", 180)
        if latitude is not None and longitude is not None:
            picture.latitude, picture.longitude = latitude, longitude
    except Exception:  # a broken EXIF block says nothing about the pixels
        return


def _exif_time(text: object, fraction: object) -> datetime | None:
    try:
        moment = datetime.strptime(str(text).strip("\x00 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = str(fraction or "").strip("\x00 ")
    return moment.replace(microsecond=int(digits[:6].ljust(6, "0"))) if digits.isdecimal() else moment


def _exif_camera(make: object, model: object) -> str | None:
    maker, name = (str(part or "").strip("\x00 ") for part in (make, model))
    if maker and name.lower().startswith(maker.lower()):  # "Canon" + "Canon EOS 5D"
        maker = ""
    return f"{maker} {name}".strip() or None


def _exif_degrees(value: object, reference: object, negative: str, limit: int) -> float | None:
    """Degrees, minutes and seconds (EXIF 2.32, 4.6.6) as signed degrees."""
    if not isinstance(value, (tuple, list)) or not value:
        return None
    parts = [float(part) for part in value[:3]]
    degrees: float = sum(part / 60.0**power for power, part in enumerate(parts))
    if not math.isfinite(degrees) or not 0 <= degrees <= limit:
        return None
    return -degrees if str(reference).strip("\x00 ").upper() == negative else degrees
