"""Decode encoded images to pixels. Scoring, training and evaluation all use this one decoder.

`read_image` never raises an error for a bad image. It returns a `Picture` with a `status` that says what is wrong,
because an image that cannot be scored also gets a row in the table.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pi_heif
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from crackbatch.images.exif import read_exif, turn_upright
from crackbatch.images.formats import (
    Refused,
    describe_start,
    name_of,
    pillow_formats,
    recognize,
    recognize_unsupported,
    size_in_ico,
    unsupported,
)
from crackbatch.images.integrity import check_structure, is_cut, unknown_kind
from crackbatch.images.jpeg import decode_jpeg
from crackbatch.images.png import pixels_only
from crackbatch.images.tiff import BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO, check_tiff, photo_page, raw_kind
from crackbatch.images.xmp import read_xmp

DEFAULT_MAX_MEGAPIXELS = 200.0
NO_MEMORY = "not enough memory to decode it"
# The status of a photograph of which only the header was read. No result has it.
PHOTO = "photo"

pi_heif.register_heif_opener(thumbnails=False)

# Pillow's own limit would refuse images that `max_megapixels` allows. Our limit is also checked before decoding.
PIL.Image.MAX_IMAGE_PIXELS = None
_MAX_SIDE = 1 << 26  # Pillow cannot scale an image with a side twice as long
# If the darkest and the lightest spot differ by fewer grey levels, the picture is only noise, and its hash is useless.
_MIN_CONTRAST = 4
_BYTES = re.compile(r"b'[^']*'|b\"[^\"]*\"")  # as Python writes them: decoders quote the image


@dataclass(slots=True)
class Picture:
    """A decoded image, or the reason why it could not be decoded.

    `pixels` is an RGB Pillow image after EXIF orientation, None unless `status` is `ok`. Width and height are in
    pixels after orientation. Latitude and longitude are the camera's position in degrees (WGS 84, from EXIF). A drone
    also writes the angles of its camera in degrees, and its altitude above the start in metres (XMP).
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
    gimbal_yaw: float | None = None
    gimbal_pitch: float | None = None
    gimbal_roll: float | None = None
    relative_altitude: float | None = None


def read_image(data: bytes, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, photo_side: int | None = None) -> Picture:
    """Decode one encoded image to upright RGB. A bad image raises nothing: the `Picture` has its status and error.

    If both sides have at least `photo_side` pixels, only its header is read: it has the status `photo`, and the width
    and height before it is turned upright.
    """
    if not data:
        return Picture("empty", "the image has no bytes")
    known = recognize(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd EXIF; `read_exif` tolerates it
        if other := raw_kind(data) if known == "tiff" else None if known else recognize_unsupported(data):
            return Picture("unsupported", unsupported(other), format=other)
        picture = Picture(format=known)
        try:
            _decode(data, max_megapixels, picture, photo_side)
        except Refused as refusal:
            picture.status, picture.error = refusal.args
        except MemoryError:
            picture.status, picture.error = "failed", NO_MEMORY
        except Exception as error:  # decoders raise anything: struct.error, SyntaxError, KeyError, …
            picture.status, picture.error = _diagnose(data, known, error)
    if picture.status != "ok":
        picture.pixels = None
    return picture


def from_pillow(image: PIL.Image.Image) -> Picture:
    """Decode an image that Pillow has opened; returns a `Picture` as `read_image` does."""
    picture = Picture()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _load(image, picture)
    except Refused as refusal:
        picture.status, picture.error = refusal.args
    except MemoryError:
        picture.status, picture.error = "failed", NO_MEMORY
    except Exception as error:  # decoders raise anything, and Pillow decodes only when pixels are needed
        picture.status, picture.error = "corrupt", str(error) or type(error).__name__
    return picture


def to_input(picture: Picture, size: int) -> np.ndarray:
    """Scale an `ok` image to the network's input: (size, size, 3) uint8, the whole image, aspect ratio not kept."""
    assert picture.pixels is not None
    scaled = picture.pixels
    if scaled.size != (size, size):
        scaled = scaled.resize((size, size), PIL.Image.Resampling.BILINEAR)
    return np.asarray(scaled)


def picture_hash(picture: Picture) -> bytes | None:
    """Return 16x16 bits of what an `ok` image looks like: whether each spot is lighter than the spot to its left.

    Return None for a blank picture.
    """
    assert picture.pixels is not None
    small = picture.pixels.convert("L").resize((17, 16), PIL.Image.Resampling.BOX)
    spots = np.asarray(small).astype(np.int16)
    if np.ptp(spots) < _MIN_CONTRAST:
        return None
    return np.packbits(spots[:, 1:] > spots[:, :-1]).tobytes()


def _decode(data: bytes, max_megapixels: float, picture: Picture, photo_side: int | None) -> None:
    if picture.format == "png":
        data = pixels_only(data)
    if (size := size_in_ico(data)) is not None:
        _check_size(*size, max_megapixels)
    with PIL.Image.open(io.BytesIO(data), formats=pillow_formats()) as image:
        picture.format = name_of(image.format)
        if picture.format == "tiff" and (page := photo_page(data)):
            image.seek(page)
        _note_size(picture, image)
        _check_size(*image.size, max_megapixels)
        if photo_side is not None and min(image.size) >= photo_side:
            picture.status = PHOTO
            return
        check_structure(data, picture.format)
        for name, value in {**read_exif(image)._asdict(), **read_xmp(image)._asdict()}.items():
            setattr(picture, name, value)
        pixels = decode_jpeg(data, *image.size) if picture.format == "jpeg" else None
        _load(image, picture, pixels)


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if (megapixels := width * height / 1e6) > max_megapixels:
        raise Refused(
            "too_large",
            f"{width}x{height} is {megapixels:.1f} megapixels, above the limit of {max_megapixels:g}"
            " (--max-megapixels)",
        )
    if max(width, height) > _MAX_SIDE:
        raise Refused("too_large", f"{width}x{height}: a side may have at most {_MAX_SIDE:,} pixels")


def _load(image: PIL.Image.Image, picture: Picture, pixels: np.ndarray | None = None) -> None:
    """Set the upright RGB pixels and their size in the `Picture`. `pixels` are the image's if they are known."""
    if isinstance(image, TiffImageFile):
        check_tiff(image)
    if pixels is None:
        image.load()
        shallow = _to_eight_bits(image) if image.mode.startswith("I;16") else image
    else:
        shallow = PIL.Image.fromarray(pixels)
    turn = turn_upright(image)
    upright = shallow.transpose(turn) if turn is not None else shallow
    _note_size(picture, upright)
    picture.pixels = _to_rgb(upright)


def _note_size(picture: Picture, image: PIL.Image.Image) -> None:
    """Set the size. A size from a damaged header that is too large for the table's columns stays null."""
    if max(image.size) < 2**31:
        picture.width, picture.height = image.size


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert any 8-bit Pillow mode to RGB, with transparent pixels on white; refuse 32-bit modes."""
    if image.mode in ("I", "F"):
        raise Refused("unsupported", f"32-bit samples (Pillow mode {image.mode}) have no defined white level")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    laid, opaque = PIL.Image.alpha_composite(white, image).convert("RGB"), image.convert("RGB")
    # Some programs leave the alpha channel at 0 everywhere, so it says nothing.
    return opaque if _is_flat(laid) and not _is_flat(opaque) else laid


def _is_flat(image: PIL.Image.Image) -> bool:
    """Whether all pixels have the same colour."""
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc]  # pairs, for several channels


def _to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale 16-bit grey to 8 bits. A TIFF may use 12 bits only, or 0 for white; Pillow corrects neither."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    samples = np.asarray(image).astype(np.uint32)
    scaled = ((samples * 255 + white // 2) // white).astype(np.uint8)
    return PIL.Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)


def _diagnose(data: bytes, known: str | None, error: Exception) -> tuple[str, str]:
    """Return the status and the error text for bytes that the decoder refused."""
    message = _BYTES.sub("some bytes", str(error)) or type(error).__name__
    if isinstance(error, PIL.UnidentifiedImageError):
        message = f"its header says {known}, but it cannot be read as such" if known else describe_start(data)
    if known is None:
        return "not_an_image", "it is cut off" if "truncated" in message.lower() else describe_start(data)
    if known in ("heif", "avif") and "codec" in message.lower():
        return "unsupported", message
    cut = is_cut(data, known) or "truncated" in message.lower() or isinstance(error, EOFError)
    if not cut and (kind := unknown_kind(data, known, error)):
        return "unsupported", f"{kind} is not supported"
    return ("truncated" if cut else "corrupt"), message
