"""Draws a photograph with its crack map, its numbers and a scale bar, at a size that a person can look at."""

from __future__ import annotations

import io
import math
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from crackbatch.models.heat import lay_over
from crackbatch.models.photo import Box, CrackMap

_MAX_SIDE = 1600
_MIN_SIDE = 640  # tiles are enlarged
_MARGIN = 8


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
