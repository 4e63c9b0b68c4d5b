"""Read what a camera wrote into an image: its name, the time, the position and the orientation (EXIF 2.32)."""

from __future__ import annotations

import math
from datetime import datetime
from typing import NamedTuple

import PIL.Image

# EXIF 2.32, 4.6.4 A: orientation → the transposition that turns the image upright.
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


_MAX_CAMERA = 100  # characters; the field itself may have megabytes


class Exif(NamedTuple):
    """The EXIF fields in the table: the camera's local time, its name, and its position in degrees (WGS 84).

    A field is None if EXIF does not contain it or contains a value that makes no sense.
    """

    captured_at: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_exif(image: PIL.Image.Image) -> Exif:
    """Return time, camera and position of an opened image; fields that cannot be read are None."""
    found = Exif()
    try:
        exif = image.getexif()
        if not exif:
            return found
        details = exif.get_ifd(0x8769)
        captured_at = _time(details.get(0x9003) or details.get(0x9004), details.get(0x9291))
        found = found._replace(captured_at=captured_at)
        found = found._replace(camera=_camera(exif.get(0x010F), exif.get(0x0110)))
        place = exif.get_ifd(0x8825)
        if str(place.get(9)).strip("\x00 ").upper() == "V":  # the receiver had no fix
            return found
        latitude = _degrees(place.get(2), place.get(1), "S", 90)
        longitude = _degrees(place.get(4), place.get(3), "W", 180)
    except Exception:  # damaged EXIF does not mean damaged pixels; keep what was read so far
        return found
    # Cameras and drones without a fix write zeros. The place itself is in the sea, 600 km off Africa.
    if latitude is None or longitude is None or latitude == longitude == 0:
        return found
    return found._replace(latitude=latitude, longitude=longitude)


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """Return the transposition that turns the image upright, None if it is upright already.

    This replaces Pillow's `exif_transpose`, which fails on damaged tags that have nothing to do with orientation.
    """
    try:
        return _UPRIGHT.get(int(image.getexif().get(0x0112, 1)))
    except Exception:  # damaged EXIF does not mean damaged pixels
        return None


def _time(text: object, fraction: object) -> datetime | None:
    try:
        moment = datetime.strptime(str(text).strip("\x00 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = str(fraction or "").strip("\x00 ")
    return moment.replace(microsecond=int(digits[:6].ljust(6, "0"))) if digits.isdecimal() else moment


def _camera(make: object, model: object) -> str | None:
    maker, name = (str(part or "").strip("\x00 ") for part in (make, model))
    if maker and name.lower().startswith(maker.lower()):  # "Canon" + "Canon EOS 5D"
        maker = ""
    whole = f"{maker} {name}".strip()
    return "".join(filter(str.isprintable, whole))[:_MAX_CAMERA] or None


def _degrees(value: object, reference: object, negative: str, limit: int) -> float | None:
    """Convert degrees, minutes and seconds (EXIF 2.32, 4.6.6) to signed degrees, None if they make no sense."""
    if not isinstance(value, (tuple, list)) or not value:
        return None
    parts = [float(part) for part in value[:3]]
    degrees: float = sum(part / 60.0**power for power, part in enumerate(parts))
    if not math.isfinite(degrees) or not 0 <= degrees <= limit:
        return None
    return -degrees if str(reference).strip("\x00 ").upper() == negative else degrees
