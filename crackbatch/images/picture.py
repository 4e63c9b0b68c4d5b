"""From encoded bytes to pixels: the only decoder, used by scoring, training and evaluation alike.

`read_image` never raises for a bad image. It returns a `Picture` whose `status` says what the bytes are, because a
picture that cannot be scored is a row of the table like any other.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import numpy as np
import pi_heif
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from crackbatch.images.exif import read_exif, turn_upright
from crackbatch.images.formats import describe_start, name_of, pillow_formats, recognize, recognize_unsupported
from crackbatch.images.integrity import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PLANAR,
    WHITE_IS_ZERO,
    Refused,
    check_structure,
    is_cut,
    unknown_kind,
)

DEFAULT_MAX_MEGAPIXELS = 200.0
NO_MEMORY = "not enough memory to decode it"

pi_heif.register_heif_opener(thumbnails=False)

# Pillow's own limit would refuse what `max_megapixels` allows, and this one is read from the header just the same.
PIL.Image.MAX_IMAGE_PIXELS = None
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
    known = recognize(data)
    if known is None and (other := recognize_unsupported(data)):
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
    with PIL.Image.open(io.BytesIO(data), formats=pillow_formats()) as image:
        picture.format = name_of(image.format)
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
        for name, value in read_exif(image)._asdict().items():
            setattr(picture, name, value)
        _load(image, picture)


def _load(image: PIL.Image.Image, picture: Picture) -> None:
    """Fill in the upright RGB pixels and their size."""
    if isinstance(image, TiffImageFile):
        _check_tiff(image)
    image.load()
    turn = turn_upright(image)
    shallow = _to_eight_bits(image) if image.mode.startswith("I;16") else image
    upright = shallow.transpose(turn) if turn is not None else shallow
    _note_size(picture, upright)
    picture.pixels = _to_rgb(upright)


def _note_size(picture: Picture, image: PIL.Image.Image) -> None:
    """Fill in the size; a damaged header says anything, and what no column of the table holds is left null."""
    if max(image.size) < 2**31:
        picture.width, picture.height = image.size


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


def _diagnose(data: bytes, known: str | None, error: Exception) -> tuple[str, str]:
    """Status and message of bytes that the decoder refused."""
    message = str(error) or type(error).__name__
    if isinstance(error, PIL.UnidentifiedImageError):
        message = f"its header says {known}, but it cannot be read as one" if known else describe_start(data)
    if known is None:
        return "not_an_image", message
    if known in ("heif", "avif") and "codec" in message.lower():
        return "unsupported", message
    cut = is_cut(data, known) or "truncated" in message.lower() or isinstance(error, EOFError)
    if not cut and (kind := unknown_kind(data, known, error)):
        return "unsupported", f"{kind} cannot be decoded here"
    return ("truncated" if cut else "corrupt"), message
