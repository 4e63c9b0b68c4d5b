"""Lays a crack map over a picture: yellow to red where a crack is likely, and a box around the worst region."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw

from crackbatch.models.photo import Box, CrackMap

# Colour and opacity of the map by probability; nothing is drawn where a crack is unlikely.
_LIKELY = 0.3
# A logit at temperature 1 of a place that certainly shows a crack: a probability of 0.98.
_SURE = 4.0
_MOST_OPAQUE = 0.55
_YELLOW, _RED = np.array([255, 210, 0.0]), np.array([230, 0, 40.0])
_BOX = (0, 170, 255)


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
