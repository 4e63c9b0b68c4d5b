"""Contact sheets: many small images with captions on one page, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

# A hairline crack must be visible, so a tile is not made smaller than networks see it.
_THUMBNAIL, _CAPTION, _GAP, _COLUMNS = 224, 46, 8, 6


class Tile(NamedTuple):
    """One image of a contact sheet, with up to three lines of text below it."""

    picture: PIL.Image.Image
    lines: Sequence[str]


def contact_sheet(sections: Mapping[str, Sequence[Tile]]) -> bytes:
    """Return a PNG with the title of each section and its tiles below it, in rows of six."""
    font, title_font = PIL.ImageFont.load_default(11), PIL.ImageFont.load_default(17)
    step, row_height = _THUMBNAIL + _GAP, _THUMBNAIL + _CAPTION
    heights = [34 + row_height * max(1, math.ceil(len(tiles) / _COLUMNS)) for tiles in sections.values()]
    sheet = PIL.Image.new("RGB", (_COLUMNS * step + _GAP, sum(heights) + _GAP), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    top = 0
    for (title, tiles), height in zip(sections.items(), heights, strict=True):
        pen.text((_GAP, top + 8), title, fill="black", font=title_font)
        for place, tile in enumerate(tiles):
            left, upper = _GAP + place % _COLUMNS * step, top + 34 + place // _COLUMNS * row_height
            thumbnail = tile.picture.convert("RGB")
            thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
            sheet.paste(thumbnail, (left, upper))
            for number, line in enumerate(tile.lines[:3]):
                shown = _shortened(line, font, _THUMBNAIL)
                pen.text((left, upper + _THUMBNAIL + 2 + 13 * number), shown, fill="black", font=font)
        if not tiles:
            pen.text((_GAP, top + 40), "none", fill="grey", font=font)
        top += height
    target = io.BytesIO()
    sheet.save(target, "PNG", optimize=True)
    return target.getvalue()


def _shortened(line: str, font: Any, width: int) -> str:
    """Shorten a line to fit the width. It keeps the end, because the end of a path says more than its start."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"…{line}") > width:
        line = line[1:]
    return f"…{line}"
