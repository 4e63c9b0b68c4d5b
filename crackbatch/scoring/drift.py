"""Compares a night with the nights before it: counts, and how values are distributed.

The population stability index compares two distributions: the sum of (p - q) * ln(p / q) over their bins. Above 0.25 a
population is commonly said to have shifted (Siddiqi 2006, Credit Risk Scorecards).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from crackbatch.decoding.decoders import Decoders
from crackbatch.sources.image import open_images

if TYPE_CHECKING:
    import pandas as pd

NUM_NIGHTS = 14
_FEWEST_NIGHTS, _FEWEST_IMAGES = 3, 50
_LIMIT = 0.25
_MANY_TIMES = 5.0  # so many times more or fewer images than usual
# A share has changed if that is so unlikely by chance, and if it is so many times larger or smaller.
_SURE_Z, _SHARE_TIMES = 4.0, 1.5
_NUM_LOOKED_AT = 500  # images whose brightness and sharpness are measured
_SIDE = 224
# The bins of each distribution. Sharpness is the logarithm of the variance of the Laplacian, at 224 pixels.
_EDGES = {
    "probability": np.linspace(0, 1, 11),
    "brightness": np.linspace(0, 255, 11),
    "sharpness": np.linspace(-1, 4, 11),
    "megapixels": np.concatenate([[0], np.geomspace(0.02, 200, 10), [np.inf]]),
    "bytes per pixel": np.concatenate([[0], np.geomspace(0.02, 10, 10), [np.inf]]),
}


@dataclass(frozen=True)
class Drift:
    """A figure that is not as in the nights before: its value, its limit, and since which night this is so."""

    figure: str
    value: float
    limit: float
    since: str
    text: str


@dataclass(frozen=True)
class Night:
    """A night: its run, counts, and how many images lie in each bin of each distribution."""

    date: str
    run_id: str
    images: int
    scored: int
    cracks: int
    statuses: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    compared_with: list[str] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exit_code: int = 0


def histograms_of(rows: pd.DataFrame, seed: str) -> dict[str, list[int]]:
    """Return how many images lie in each bin of each distribution.

    Brightness and sharpness are measured on 500 images that are drawn at random.
    """
    scored = rows[rows["status"] == "ok"]
    pixels = scored["width"].astype(float) * scored["height"]
    values = {
        "probability": scored["crack_probability"].to_numpy(float),
        "megapixels": pixels.to_numpy() / 1e6,
        "bytes per pixel": (scored["size_bytes"] / pixels).to_numpy(float),
    }
    named = list(zip(scored["image_uri"], scored["version"], strict=True))
    drawn = random.Random(seed).sample(named, min(_NUM_LOOKED_AT, len(named)))
    looked_at = np.array(list(_look_at(drawn))).reshape(-1, 2)
    values |= {"brightness": looked_at[:, 0], "sharpness": looked_at[:, 1]}
    return {name: _counts(found, _EDGES[name]) for name, found in values.items()}


def compare(night: Night, before: Sequence[Night]) -> list[Drift]:
    """Return the figures of a night that are not as in the nights before it (the newest last), at most the last 14."""
    before = before[-NUM_NIGHTS:]
    if len(before) < _FEWEST_NIGHTS:
        return []
    return [
        Drift(figure, round(value, 4), round(limit, 4), _since(figure, night, before), text)
        for figure, value, limit, text in _figures(night, before)
        if value > limit
    ]


def _figures(night: Night, before: Sequence[Night]) -> Iterator[tuple[str, float, float, str]]:
    """Yield each figure that can be compared: its name, value and limit, and what it says if it is above the limit."""
    usual = float(np.median([other.images for other in before]))
    if usual:
        times = max(night.images / usual, usual / max(night.images, 0.5))
        yield "images", times, _MANY_TIMES, f"{night.images:,} images, where {usual:,.0f} are usual"
    for figure, part, whole in (
        ("failed images", "failed", "images"),
        ("share of cracks", "cracks", "scored"),
    ):
        yield from _share(figure, part, whole, night, before)
    for name, counts in night.histograms.items():
        other = [one.histograms[name] for one in before if len(one.histograms.get(name, ())) == len(counts)]
        if not other:
            continue
        earlier = np.sum(other, axis=0)
        if min(sum(counts), int(earlier.sum())) >= _FEWEST_IMAGES:
            index, chance = stability_index(np.array(counts), earlier)
            yield name, index, _LIMIT + chance, f"the distribution of {name} has shifted (index {index:.2f})"


def _share(
    figure: str, part: str, whole: str, night: Night, before: Sequence[Night]
) -> Iterator[tuple[str, float, float, str]]:
    num, total = _value(night, part), _value(night, whole)
    earlier, of = (sum(_value(other, name) for other in before) for name in (part, whole))
    if min(total, of) < _FEWEST_IMAGES:
        return
    pooled = (num + earlier) / (total + of)
    spread = math.sqrt(max(pooled * (1 - pooled) * (1 / total + 1 / of), 1e-12))
    now, then = num / total, earlier / of
    is_unlikely = abs(now - then) / spread > _SURE_Z
    times = max(now, then) / max(min(now, then), 0.5 / max(total, of))
    yield figure, times if is_unlikely else 1.0, _SHARE_TIMES, f"{figure}: {now:.1%}, where {then:.1%} is usual"


def _value(night: Night, name: str) -> int:
    return night.images - night.scored if name == "failed" else int(getattr(night, name))


def stability_index(counts: np.ndarray, earlier: np.ndarray) -> tuple[float, float]:
    """Return the population stability index of two histograms, and what chance alone gives it at most, nearly always.

    By chance it is about (bins - 1) * (1 / n + 1 / m) for n and m images; three times that is rare.
    """
    shares = [(values + 0.5) / (values + 0.5).sum() for values in (counts, earlier)]
    index = float(np.sum((shares[0] - shares[1]) * np.log(shares[0] / shares[1])))
    return index, 3 * (len(counts) - 1) * (1 / counts.sum() + 1 / earlier.sum())


def _since(figure: str, night: Night, before: Sequence[Night]) -> str:
    """Return the first of the nights in a row, up to this one, in which the figure is not as before."""
    row = list(takewhile(lambda other: any(one.figure == figure for one in other.drift), reversed(before)))
    return row[-1].date if row else night.date


def _counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    inside = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    found: list[int] = np.histogram(inside, edges)[0].tolist()
    return found


def _look_at(images: Sequence[tuple[str, str]]) -> Iterator[tuple[float, float]]:
    """Yield the mean brightness (0 to 255) and the sharpness of each image that can be read."""
    opened = (data for _, data in open_images(images) if not isinstance(data, OSError))
    with Decoders(_SIDE, batch_size=32) as decoders:
        for decoded in decoders.decode(_batches(opened, decoders.batch_size)):
            grey = decoded.pixels.mean(axis=3, dtype=np.float32)
            across = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
            down = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
            edges = 4 * grey[:, 1:-1, 1:-1] - across - down  # the Laplacian
            sharpness = np.log10(np.maximum(edges.var(axis=(1, 2)), 1e-3))
            yield from zip(grey.mean(axis=(1, 2)).tolist(), sharpness.tolist(), strict=True)


def _batches(images: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    batch = list[bytes]()
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
