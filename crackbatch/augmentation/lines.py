"""Lines that are no cracks, drawn onto training pictures: marks of formwork, joints, edges of boards, cables, shadows.

A network that has seen few of them takes any dark line for a crack. A line here is straight or nearly so and crosses
the whole picture, while a crack wanders, branches and ends. Lines are drawn onto sound pictures, and more rarely onto
cracked ones, so that a line alone says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from crackbatch.augmentation.draws import between, log_between

if TYPE_CHECKING:
    import torch

# Lengths are in pixels of a picture of this size.
_SIZE = 224
_MOST = 3  # lines in a picture
_WIDTH = (1.0, 14.0)
_EDGE = (0.3, 3.0)  # how far an edge is blurred
_SHADOW = (8.0, 40.0)  # the same for the edge of a shadow, and half the width of a stain along a line
_DARK, _LIGHT = (0.08, 0.7), (0.06, 0.4)  # what a dark line takes from the brightness, and a light one adds
# Shares of the kinds: a dark line, a light one, both side by side, a step in brightness, the edge of a shadow.
_KINDS = np.cumsum([0.45, 0.12, 0.15, 0.16, 0.12])
_UPRIGHT = 0.7  # share of the pictures whose lines are nearly level or upright
_NUM_DRAWS_OF_LINE = 14
NUM_DRAWS = 3 + _MOST * _NUM_DRAWS_OF_LINE


_Values = TypeVar("_Values")


class _Line(NamedTuple, Generic[_Values]):
    """One line of each picture: arrays or tensors, each (batch,). Lengths are for a picture of `_SIZE` pixels."""

    is_there: _Values
    angle: _Values  # in radians
    offset: _Values  # from the centre of the picture
    bend: _Values  # how far its ends lie beside the straight line
    wander: _Values  # how rough it is
    kind: _Values
    width: _Values
    edge: _Values
    depth: _Values
    uneven: _Values  # how much its depth changes along it
    phase: _Values
    stain: _Values  # what a stain along it takes from the brightness
    stain_width: _Values


def draw_lines(pictures: torch.Tensor, shares: np.ndarray) -> torch.Tensor:
    """Return pictures (batch, 3, size, size) from 0 to 255 with one to three lines each.

    `shares` (`NUM_DRAWS`, batch) are random numbers from 0 to 1.
    """
    import torch

    size = pictures.shape[-1]
    places = (torch.arange(size, device=pictures.device) + 0.5) * (_SIZE / size) - _SIZE / 2
    factor = torch.ones((len(pictures), size, size), device=pictures.device)
    for line in _lines(shares):
        values = [torch.from_numpy(np.asarray(value, np.float32)).to(pictures.device) for value in line]
        factor *= _drawn(_Line(*(value[:, None, None] for value in values)), places)
    return (pictures * factor[:, None]).clamp_(0, 255)


def _lines(shares: np.ndarray) -> list[_Line[np.ndarray]]:
    """Return the lines of each picture: parallel ones mostly, such as the edges of boards, or a cross."""
    upright, turn, number = shares[:3]
    level = np.floor(turn * 4) * (np.pi / 2) + (turn * 4 % 1 - 0.5) * np.radians(8)
    angle = np.where(upright < _UPRIGHT, level, turn * 2 * np.pi)
    lines = []
    for at in range(_MOST):
        draws = shares[3 + at * _NUM_DRAWS_OF_LINE :][:_NUM_DRAWS_OF_LINE]
        offset, tilt, bend, bends, wander, kind, width, edge, depth, uneven, phase, stain, has_stain, spread = draws
        kinds = np.searchsorted(_KINDS, kind * _KINDS[-1], side="right")
        others = np.select([tilt < 0.65, tilt < 0.9], [0.0, np.pi / 2], (tilt - 0.9) * 20 * np.pi)
        shadow, wide = log_between(_SHADOW, spread), log_between(_WIDTH, width)
        lines.append(
            _Line(
                is_there=number < (1.0, 0.45, 0.2)[at],
                angle=angle + (others if at else 0) + (tilt % 0.05 - 0.025),
                offset=(2 * offset - 1) * 0.47 * _SIZE,
                bend=(2 * bend - 1) * np.where((bends < 0.3) & (wide > 4), 20.0, 1.5),  # a thin one may be a crack
                wander=wander**2 * 0.4,
                kind=kinds,
                width=wide,
                edge=np.where(kinds == 4, shadow, log_between(_EDGE, edge)),
                depth=np.where(kinds == 1, between(_LIGHT, depth), between(_DARK, depth)),
                uneven=uneven * 0.6,
                phase=phase * 2 * np.pi,
                stain=np.where(has_stain < 0.25, 0.25 * stain, 0.0),
                stain_width=shadow,
            )
        )
    return lines


def _drawn(line: _Line[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Return the factor of the brightness (batch, size, size) with which a line is drawn."""
    import torch

    x, y = places[None, None, :], places[None, :, None]
    cos, sin = torch.cos(line.angle), torch.sin(line.angle)
    along, across = x * cos + y * sin, y * cos - x * sin - line.offset
    wave = torch.sin(along * 0.11 + line.phase) + 0.6 * torch.sin(along * 0.37 + 2.3 * line.phase)
    across = across - line.bend * (along / (_SIZE / 2)) ** 2 - line.wander * wave
    kind, edge = line.kind, line.edge

    def inside(distance: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((width / 2 - distance.abs()) / edge * 2)

    # Lines thinner than a blurred edge do not vanish, they become faint.
    body = inside(across, line.width)
    beside = inside(across - line.width, line.width * 0.7)
    step = torch.sigmoid(across / edge * 2) - 0.5
    depth = line.depth * (1 - line.uneven * (0.5 + 0.3 * wave).clamp(0, 1))
    change = torch.where(kind == 1, depth * body, -depth * body)
    change = torch.where(kind == 2, change + 0.6 * depth * beside, change)
    change = torch.where(kind >= 3, 0.7 * line.depth * step, change)
    stain = line.stain * torch.exp(-0.5 * (across / line.stain_width) ** 2) * (0.7 + 0.3 * wave / 1.6)
    return torch.where(line.is_there > 0, (1 + change) * (1 - stain), 1.0)
