"""The figures of a report, as numbers that its page draws: a histogram, and positions on a map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from crackbatch.reports.overlay import round_number

if TYPE_CHECKING:
    import pandas as pd

_BINS = 20
_WIDTH, _MOST_HEIGHT = 720, 520  # of the map, in pixels
_MARGIN = 16
_STEP = 8  # positions nearer to each other than this are one circle
_METRES_PER_DEGREE = 111_320.0  # of latitude: 40,075 km / 360
_SMALLEST_M = 10.0  # positions of one place differ by the error of GPS


class Bar(NamedTuple):
    """A bar of a histogram: its bounds, its number of images, and its height from 0 to 1 on a logarithmic scale."""

    low: float
    high: float
    num: int
    height: float


class Circle(NamedTuple):
    """Images near each other on a map: the centre and radius in pixels, and how many of them show a crack."""

    x: float
    y: float
    radius: float
    images: int
    cracks: int


class PositionMap(NamedTuple):
    """Positions of cameras, north up. `scale` is the length of the scale bar in pixels, `scale_m` in metres."""

    width: int
    height: int
    circles: list[Circle]
    scale: float
    scale_m: float
    images: int
    num_outside: int


def histogram(probabilities: np.ndarray) -> list[Bar]:
    """Return twenty bars for probabilities from 0 to 1."""
    counts, edges = np.histogram(probabilities, _BINS, (0.0, 1.0))
    most = math.log1p(max(1, counts.max()))
    return [
        Bar(float(low), float(high), int(count), math.log1p(count) / most)
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def map_positions(rows: pd.DataFrame) -> PositionMap | None:
    """Return a map of the rows that have a position, None if there is none.

    Few positions far away from all others, such as 0 degrees north and east, are not drawn but counted.
    """
    known = rows[rows["latitude"].between(-90, 90) & rows["longitude"].between(-180, 180)]
    if known.empty:
        return None
    east, north = _metres(known["latitude"].to_numpy(float), known["longitude"].to_numpy(float))
    inside = _is_near(east) & _is_near(north)
    east, north = east[inside], north[inside]
    cracks = (known["label"] == "crack").to_numpy()[inside]
    centre = (east.min() + np.ptp(east) / 2, north.min() + np.ptp(north) / 2)
    wide, high = max(np.ptp(east), _SMALLEST_M), max(np.ptp(north), _SMALLEST_M)
    unit = min((_WIDTH - 2 * _MARGIN) / wide, (_MOST_HEIGHT - 2 * _MARGIN) / high)
    height = round(high * unit) + 2 * _MARGIN
    x = _WIDTH / 2 + (east - centre[0]) * unit
    y = height / 2 - (north - centre[1]) * unit
    length_m = round_number(_WIDTH / 4 / unit)
    return PositionMap(
        _WIDTH, height, _circles(x, y, cracks), length_m * unit, length_m, int(inside.sum()), int((~inside).sum())
    )


def _metres(latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return metres to the east and north of the median position, on a plane that touches the earth there."""
    middle = np.median(latitude)
    across = (longitude - longitude[0] + 180) % 360 - 180  # also where the site lies on both sides of 180 degrees
    east = (across - np.median(across)) * _METRES_PER_DEGREE * math.cos(math.radians(middle))
    return east, (latitude - middle) * _METRES_PER_DEGREE


def _is_near(metres: np.ndarray) -> np.ndarray:
    """Return which values lie within twice the range of the middle 98 %, or within 1 km of it."""
    low, high = np.quantile(metres, [0.01, 0.99])
    spare = max(high - low, 1000.0)
    near: np.ndarray = (metres >= low - spare) & (metres <= high + spare)
    return near


def _circles(x: np.ndarray, y: np.ndarray, cracks: np.ndarray) -> list[Circle]:
    """Return a circle for each square of the map that has positions, those with cracks last, so that they lie above."""
    squares = np.stack([x // _STEP, y // _STEP], 1).astype(int)
    _, inverse, counts = np.unique(squares, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    sums = [np.bincount(inverse, values, len(counts)) for values in (x, y, cracks.astype(float))]
    radii = 2.5 + 1.5 * np.log10(counts)
    found = [
        Circle(round(across / num, 1), round(down / num, 1), round(float(radius), 1), int(num), int(cracked))
        for across, down, cracked, num, radius in zip(*sums, counts, radii, strict=True)
    ]
    return sorted(found, key=lambda circle: circle.cracks)
