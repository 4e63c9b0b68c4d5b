"""The column of a manifest that says how many millimetres of the surface a pixel of a photograph shows."""

from __future__ import annotations

import math
from typing import Any

RESOLUTION = "ground_resolution"


class WrongResolution(ValueError):
    """The value is not a number above 0."""


def read_resolution(value: Any) -> float | None:
    """Return the value as millimetres per pixel, None if there is none. A CSV file gives text."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise WrongResolution(f"its {RESOLUTION} is {str(value)[:40]!r}; it must be a number above 0")
    return number
