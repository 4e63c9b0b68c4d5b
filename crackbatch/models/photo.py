"""Looks at a photograph in windows: from its pixels to a map of logits, and from the map to one probability.

A photograph is brought to the scale of the model's training, and the network runs over it once (`models/dense.py`).
Each place of the map is the logit of a window. Windows above a cut that touch each other are a region. The strength of
a region is the sum of what its logits have above the cut: a crack lights up many windows in a row, a stain only a few.
The strongest region alone decides, so that a large photograph raises no alarm for many weak regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image

from crackbatch.errors import BundleError, OptionError
from crackbatch.models.bundle import Bundle, PhotoSettings, calibrated

# A photograph is enlarged at most by this. Larger ones show no more, and take long.
MAX_ENLARGEMENT = 4.0
# An image with both sides so many times as long as the network's input is a photograph.
_PHOTO_SIDES = 2
_MIN_TILE_SIZE, _MAX_TILE_SIZE = 16, 100_000


class Box(NamedTuple):
    """A rectangle in a photograph, in pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class CrackMap:
    """The logits (rows, columns) float32 of the windows of a photograph of `width` by `height` pixels.

    The window of row r and column c covers `window` pixels (across, down) from (c * step[0], r * step[1]). The
    probability of a window is sigmoid(logit / temperature).
    """

    logits: np.ndarray
    width: int
    height: int
    step: tuple[float, float]
    window: tuple[float, float]
    temperature: float = 1.0

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of a crack in each window (rows, columns) float32."""
        return calibrated(self.logits, self.temperature)

    @property
    def is_of_windows(self) -> bool:
        """Whether windows overlap: the map of a photograph, not the class activation of a tile."""
        return self.window[0] > self.step[0]

    @property
    def x(self) -> np.ndarray:
        """Where the centres of the windows of each column lie, in pixels from the left border."""
        return np.arange(self.logits.shape[1]) * self.step[0] + self.window[0] / 2

    @property
    def y(self) -> np.ndarray:
        """Where the centres of the windows of each row lie, in pixels from the upper border."""
        return np.arange(self.logits.shape[0]) * self.step[1] + self.window[1] / 2


@dataclass(frozen=True)
class Verdict:
    """What a map says of a photograph: its logit, its windows, those above the cut, and the strongest region."""

    logit: float
    tiles: int
    crack_tiles: int
    box: Box | None


class Grid(NamedTuple):
    """The size in pixels to which a photograph is scaled: whole steps of the network, at least one window."""

    width: int
    height: int

    @classmethod
    def of(cls, width: int, height: int, scale: float, stride: int, side: int) -> Grid:
        steps = (max(side, round(length * scale / stride)) for length in (width, height))
        return cls(*(num * stride for num in steps))


def photo_side(bundle: Bundle) -> int | None:
    """Return how many pixels both sides of an image need to be looked at in windows; None if the bundle never does."""
    return None if bundle.photo is None else _PHOTO_SIDES * bundle.input_size


def check_scale(tile_size: float | None, ground_resolution: float | None) -> None:
    """Raise OptionError for a `tile_size` (pixels) or `ground_resolution` (mm a pixel) that no photograph can have."""
    if tile_size is not None and not _MIN_TILE_SIZE <= tile_size <= _MAX_TILE_SIZE:
        raise OptionError(f"--tile-size must be from {_MIN_TILE_SIZE} to {_MAX_TILE_SIZE:,} pixels, got {tile_size:g}")
    if ground_resolution is not None and not 0 < ground_resolution < math.inf:
        raise OptionError(f"--ground-resolution must be above 0 (millimetres a pixel), got {ground_resolution:g}")


def check_scale_for(bundle: Bundle, tile_size: float | None, ground_resolution: float | None) -> None:
    """Raise OptionError for a scale that no photograph can have, BundleError for one that the bundle has no use for."""
    check_scale(tile_size, ground_resolution)
    if tile_size is not None and ground_resolution is not None:
        raise OptionError("--tile-size and --ground-resolution both set the scale; give only one of them")
    for name, value in {"--tile-size": tile_size, "--ground-resolution": ground_resolution}.items():
        if value is not None:
            check_calibrated(bundle, name)
    if ground_resolution is not None and bundle.photo is not None and bundle.photo.mm_per_pixel is None:
        raise BundleError(
            f"model {bundle.name} does not say how many millimetres its training photographs show in a pixel,"
            " so --ground-resolution is of no use; give --tile-size"
        )


def check_calibrated(bundle: Bundle, option: str) -> None:
    """Raise BundleError if the bundle cannot look at windows of photographs, which an option needs."""
    if bundle.photo is None:
        raise BundleError(
            f"model {bundle.name} is not calibrated for photographs, which {option} needs; calibrate it with"
            " `crackbatch calibrate`, or use another model"
        )


def window_scale(
    bundle: Bundle,
    width: int,
    height: int,
    *,
    side: int | None = None,
    tile_size: float | None = None,
    mm_per_pixel: float | None = None,
) -> float | None:
    """Return the scale (`scale_of`) at which an image is looked at in windows; None if it is looked at as one tile.

    Both sides of a photograph have at least `side` pixels, by default `photo_side`, and a window fits into it.
    """
    side = photo_side(bundle) if side is None else side
    if bundle.photo is None or side is None or min(width, height) < side:
        return None
    scale = scale_of(bundle.input_size, bundle.photo, tile_size, mm_per_pixel)
    return scale if scale * min(width, height) >= bundle.input_size else None


def scale_of(
    input_size: int, settings: PhotoSettings, tile_size: float | None = None, mm_per_pixel: float | None = None
) -> float:
    """Return how many pixels of the network's input a pixel of a photograph becomes.

    One window covers `tile_size` pixels. If it is None, and the photograph shows `mm_per_pixel` of the surface in a
    pixel, one window covers as much of the surface as in training; otherwise as many pixels as in training.
    """
    if tile_size is not None:
        return input_size / tile_size
    enlarged = 1.0
    if mm_per_pixel is not None and settings.mm_per_pixel is not None:
        enlarged = min(MAX_ENLARGEMENT, mm_per_pixel / settings.mm_per_pixel)
    return input_size / settings.window * enlarged


def strips(pixels: np.ndarray, grid: Grid, num_rows: int) -> Iterator[np.ndarray]:
    """Yield a photograph (height, width, 3) uint8 scaled to the grid, in strips (rows, width, 3) from top to bottom.

    The strips hold the pixels of the photograph scaled at once. Where these lie halfway between two values, they may
    differ by one.
    """
    height, width = pixels.shape[:2]
    ratio = height / grid.height
    reach = math.ceil(max(1.0, ratio)) + 1  # the filter takes so many pixels above and below
    for top in range(0, grid.height, num_rows):
        bottom = min(top + num_rows, grid.height)
        if (width, height) == grid:
            yield pixels[top:bottom]
            continue
        first = max(0, math.floor(top * ratio) - reach)
        cut = PIL.Image.fromarray(pixels[first : min(height, math.ceil(bottom * ratio) + reach)])
        box = (0, top * ratio - first, width, min(bottom * ratio - first, cut.height))
        yield np.array(cut.resize((grid.width, bottom - top), PIL.Image.Resampling.BILINEAR, box))


def judge(crack_map: CrackMap, settings: PhotoSettings) -> Verdict:
    """Return what a map says of its photograph."""
    strength, places = _strongest(crack_map.logits, settings.cut)
    box = None if places is None else _box(crack_map, places)
    num_above = int((crack_map.logits >= settings.cut).sum())
    return Verdict(settings.intercept + settings.slope * strength, crack_map.logits.size, num_above, box)


def strength_of(crack_map: CrackMap, cut: float) -> float:
    """Return the strength of the strongest region: log(1 + sum of what its logits have above the cut).

    Without any region, it is what the highest logit has above the cut, which is below 0.
    """
    return _strongest(crack_map.logits, cut)[0]


def _strongest(logits: np.ndarray, cut: float) -> tuple[float, tuple[slice, slice] | None]:
    """Return the strength of the strongest region and its rows and columns, None without any region."""
    from scipy import ndimage

    regions, num = ndimage.label(logits >= cut, np.ones((3, 3), int))
    if not num:
        return float(logits.max()) - cut, None
    strengths = ndimage.sum_labels(logits - cut, regions, range(1, num + 1))
    worst = int(np.argmax(strengths))
    return math.log1p(strengths[worst]), ndimage.find_objects(regions)[worst]


def _box(crack_map: CrackMap, places: tuple[slice, slice]) -> Box:
    """Return the box of a region, in pixels of the photograph.

    It spans the centres of the windows. It is at least one window large, and goes to the border of the photograph if
    the region does, because no window has its centre there.
    """
    ends = []
    sizes = (crack_map.width, crack_map.height)
    for axis, (place, size) in enumerate(zip(reversed(places), sizes, strict=True)):
        step, window, num = crack_map.step[axis], crack_map.window[axis], crack_map.logits.shape[1 - axis]
        low = place.start * step + (window - step) / 2
        high = (place.stop - 1) * step + (window + step) / 2
        if high - low < window:
            low, high = (low + high - window) / 2, (low + high + window) / 2
        low = 0.0 if place.start == 0 else low
        high = size if place.stop == num else high
        ends.append((max(0, round(low)), min(size, round(high))))
    (left, right), (top, bottom) = ends
    return Box(left, top, right - left, bottom - top)
