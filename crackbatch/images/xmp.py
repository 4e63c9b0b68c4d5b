"""Reads what a drone of DJI wrote into an image: where its camera looked, and how high it flew (XMP).

The text is searched, not parsed as XML, so that it cannot make a parser do anything.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import PIL.Image

_MAX_BYTES = 256 << 10
_FIELDS = {
    "gimbal_yaw": "GimbalYawDegree",
    "gimbal_pitch": "GimbalPitchDegree",
    "gimbal_roll": "GimbalRollDegree",
    "relative_altitude": "RelativeAltitude",
}
# An attribute, drone-dji:Name="+1.5", or an element, <drone-dji:Name>+1.5</drone-dji:Name>.
_VALUE = rb"drone-dji:%s\s*(?:=\s*[\"']|>)\s*([-+]?[0-9]{1,7}(?:\.[0-9]{1,12})?)\s*[\"'<]"


class Flight(NamedTuple):
    """Angles of the camera in degrees (yaw from north, pitch from the horizon), altitude above the start in metres."""

    gimbal_yaw: float | None = None
    gimbal_pitch: float | None = None
    gimbal_roll: float | None = None
    relative_altitude: float | None = None


def read_xmp(image: PIL.Image.Image) -> Flight:
    """Return what a drone wrote into an opened image; fields that it did not write, or wrongly, are None."""
    data = image.info.get("xmp")
    if isinstance(data, str):
        data = data.encode(errors="replace")
    if not isinstance(data, bytes) or b"drone-dji:" not in data[:_MAX_BYTES]:
        return Flight()
    found = {}
    for name, field in _FIELDS.items():
        match = re.search(_VALUE % field.encode(), data[:_MAX_BYTES])
        value = float(match[1]) if match else math.nan
        found[name] = value if math.isfinite(value) else None
    return Flight(**found)
