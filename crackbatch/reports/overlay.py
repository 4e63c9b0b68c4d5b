"""Draws a photograph with its crack map over it, at a size that a person can look at."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from crackbatch.models.photo import Box, CrackMap

_MAX_SIDE = 1600
_MIN_SIDE = 640  # tiles are enlarged
_MARGIN = 8
# Colour and opacity of the map by probability; nothing is drawn where a crack is unlikely.
_LIKELY = 0.3
# A logit at temperature 1 of a place that certainly shows a crack: a probability of 0.98.
_SURE = 4.0
_MOST_OPAQUE = 0.55
_YELLOW, _RED = np.array([255, 210, 0.0]), np.array([230, 0, 40.0])
_BOX = (0, 170, 255)


def draw_overlay(
    picture: PIL.Image.Image, crack_map: CrackMap, box: Box | None, lines: list[str], mm_per_pixel: float | None = None
) -> bytes:
    """Return a JPEG of the picture with its map, the box of the worst region, lines of text, and a scale bar.

    The scale bar shows millimetres if it is known how many of them a pixel of the picture shows, otherwise pixels.
    """
    ratio = min(_MAX_SIDE / max(picture.size), max(1.0, _MIN_SIDE / max(picture.size)))
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    font: Any = PIL.ImageFont.load_default(max(13, round(max(width, height) / 80)))
    text = "\n".join(lines)
    drawn = lay_over(picture, width, height, crack_map, box, line_width=3)
    bottom = round(PIL.ImageDraw.Draw(drawn).multiline_textbbox((0, 0), text, font=font)[3]) + 3 * _MARGIN
    sheet = PIL.Image.new("RGB", (width, height + bottom), "black")
    sheet.paste(drawn, (0, 0))
    pen = PIL.ImageDraw.Draw(sheet)
    pen.multiline_text((_MARGIN, height + _MARGIN), text, fill="white", font=font)
    unit, name = (ratio, "pixels") if mm_per_pixel is None else (ratio / mm_per_pixel, "mm")
    _draw_scale(pen, font, (width - _MARGIN, height + _MARGIN), width / 5 / unit, unit, name)
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=88)
    return target.getvalue()


def lay_over(
    picture: PIL.Image.Image, width: int, height: int, crack_map: CrackMap | None, box: Box | None, line_width: int = 1
) -> PIL.Image.Image:
    """Return the picture at this size, with its map and the box of the worst region if they are known."""
    is_smaller = width < picture.width
    drawn = picture.convert("RGB").resize((width, height), PIL.Image.Resampling.BOX if is_smaller else None)
    if crack_map is not None:
        drawn = _blend(drawn, _spread(crack_map, width, height))
    if box is not None:
        across, down = width / picture.width, height / picture.height
        left, top = box.x * across, box.y * down
        right, bottom = (box.x + box.width) * across - 1, (box.y + box.height) * down - 1
        pen = PIL.ImageDraw.Draw(drawn)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline="white", width=line_width + 2)
        inner = (left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1))
        pen.rectangle(inner, outline=_BOX, width=line_width)
    return drawn


def _spread(crack_map: CrackMap, width: int, height: int) -> np.ndarray:
    """Return the probability at each pixel (height, width) float32: between the centres of the windows it is blended.

    Beyond the outermost centres it is that of the nearest window. Of a tile it is what each place adds to its logit.
    """
    columns = _places(crack_map.x, crack_map.width, width)
    rows = _places(crack_map.y, crack_map.height, height)
    found = crack_map.probabilities if crack_map.is_of_windows else _relative(crack_map)
    across = _blended(found.T, columns).T
    return _blended(across, rows)


def _relative(crack_map: CrackMap) -> np.ndarray:
    """Return the class activation of a tile from 0 to 1: 1 where it is highest, unless no place looks like a crack.

    Every place of a tile with a crack sees some of the crack, so all their probabilities are high.
    """
    highest = max(float(crack_map.logits.max()), _SURE * crack_map.temperature)
    relative: np.ndarray = np.clip(crack_map.logits / highest, 0, 1)
    return relative


def _places(centres: np.ndarray, length: int, num: int) -> np.ndarray:
    """Return where each of `num` pixels lies among the centres: 1.5 is halfway between the second and the third."""
    positions = (np.arange(num) + 0.5) * length / num
    return np.interp(positions, centres, np.arange(len(centres)))


def _blended(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return rows of values at places between rows."""
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (places - low).astype(np.float32)[:, None]
    blended: np.ndarray = values[low] * (1 - share) + values[high] * share
    return blended


def _blend(picture: PIL.Image.Image, probability: np.ndarray) -> PIL.Image.Image:
    """Lay the colours of the probabilities over a picture of the same size."""
    strength = np.clip((probability - _LIKELY) / (1 - _LIKELY), 0, 1)[:, :, None]
    colour = _YELLOW + (_RED - _YELLOW) * strength
    opacity = _MOST_OPAQUE * np.sqrt(strength)
    mixed = np.asarray(picture) * (1 - opacity) + colour * opacity
    return PIL.Image.fromarray(np.round(mixed).astype(np.uint8))


def _draw_scale(
    pen: PIL.ImageDraw.ImageDraw, font: Any, corner: tuple[int, int], longest: float, unit: float, name: str
) -> None:
    """Draw a bar of at most `longest` units, and its length below it. `corner` is its upper right one."""
    length = round_number(longest)
    right, top = corner
    pen.rectangle((right - length * unit, top, right, top + _MARGIN // 2), fill="white")
    pen.text((right, top + _MARGIN), f"{length:g} {name}", fill="white", font=font, anchor="ra")


def round_number(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (5, 2, 1) if step * power <= value)
