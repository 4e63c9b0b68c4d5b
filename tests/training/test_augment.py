"""A picture is changed as another camera or light would change it, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from crackbatch.training import augment
from crackbatch.training.augment import Augmentation


@pytest.mark.parametrize(("strength", "least", "most"), [("full", 0.6, 0.7), ("light", 0.87, 0.92)])
def test_augmentation_shows_each_time_another_part_of_the_picture(strength: str, least: float, most: float) -> None:
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, np.arange(160) // 4 % 2 == 0] = 200
    change = Augmentation(80, 0, strength)
    shown = [change(stripes, 0, number, number) for number in range(100)]
    assert len({picture.tobytes() for picture in shown}) == 100
    assert all((change(stripes, 0, number, number) == shown[number]).all() for number in range(10))
    shares = [_count_edges(picture) / 39 for picture in shown]
    assert least - 1 / 39 <= min(shares) < most
    assert max(shares) > 0.95


CORNERS = np.zeros((96, 96, 3), np.uint8)

CORNERS[:48, :48], CORNERS[:48, 48:], CORNERS[48:, :48], CORNERS[48:, 48:] = 40, 80, 120, 160


def augmented(pixels: np.ndarray, num: int = 400) -> list[np.ndarray]:
    change = Augmentation(64, 0, "full")
    return [change(pixels, 0, number, number).astype(float) for number in range(num)]


def test_augmentation_flips_and_turns_as_often_each_way() -> None:
    corners = [picture[[2, 2, -3, -3], [2, -3, 2, -3], 0] for picture in augmented(CORNERS)]
    ways = Counter(tuple(np.argsort(corner)) for corner in corners)
    assert len(ways) == 8
    assert all(25 <= num <= 80 for num in ways.values())


def test_augmentation_changes_light_contrast_and_colour() -> None:
    light = [picture.mean() / 120 for picture in augmented(np.full((96, 96, 3), 120, np.uint8))]
    assert (min(light), max(light)) == (pytest.approx(0.65, abs=0.03), pytest.approx(1.35, abs=0.03))
    halves = np.repeat(np.array([100, 150], np.uint8), 48)[:, None, None] + np.zeros((1, 96, 3), np.uint8)
    contrast = [np.ptp(picture[8::47, 8::47]) / picture[8::47, 8::47].mean() / 0.4 for picture in augmented(halves)]
    assert min(contrast) < 0.75
    assert max(contrast) > 1.25
    colour = [np.ptp(picture.mean((0, 1))) for picture in augmented(np.full((96, 96, 3), (150, 100, 100), np.uint8))]
    assert min(colour) < 3
    assert max(colour) > 70


def test_augmentation_blurs_some_pictures_and_saves_some_as_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    grain = np.random.default_rng(0).integers(60, 180, (96, 96, 1), np.uint8).repeat(3, 2)
    shown = augmented(grain)
    monkeypatch.setitem(augment._RANGES, "full", augment._RANGES["full"]._replace(noise=0))
    plain = augmented(grain)  # the same but for that: it is drawn last
    changed = [number for number in range(400) if (shown[number] != plain[number]).any()]
    assert len(changed) / 400 == pytest.approx(1 - 0.85**2, abs=0.07)
    grains = [np.abs(np.diff(shown[at], axis=0)).mean() / np.abs(np.diff(plain[at], axis=0)).mean() for at in changed]
    assert sum(left < 0.85 for left in grains) >= 20  # blurred
    assert sum(left > 0.95 for left in grains) >= 20  # a JPEG


def _count_edges(picture: np.ndarray) -> int:
    """Edges between stripes, which may have been turned."""
    lines = max((picture.mean(axis=(axis, 2)) for axis in (0, 1)), key=np.std)
    return int(np.count_nonzero(np.diff(lines > lines.mean())))
