"""Lines that are no cracks are drawn onto training pictures, each time others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crackbatch.augmentation import augment
from crackbatch.augmentation.augment import AUGMENTATIONS, Augmentation
from crackbatch.augmentation.lines import NUM_DRAWS, draw_lines

NUM = 400


def lined(size: int = 112, seed: int = 0) -> np.ndarray:
    """Even grey pictures (NUM, size, size) with lines."""
    shares = np.random.default_rng(seed).random((NUM_DRAWS, NUM))
    drawn = draw_lines(torch.full((NUM, 3, size, size), 128.0), shares)
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    return drawn[:, 0].numpy()


def test_every_picture_has_lines_of_its_own_dark_ones_mostly() -> None:
    pictures = lined()
    assert len({picture.tobytes() for picture in pictures}) == NUM
    strongest = np.abs(pictures - 128).reshape(NUM, -1).max(1)
    assert (strongest > 3).mean() > 0.97
    assert pictures.min() >= 0
    darkens, lightens = 128 - pictures.min((1, 2)), pictures.max((1, 2)) - 128
    assert 0.6 < (darkens > lightens).mean() < 0.95


def test_a_line_is_nearly_straight_and_crosses_the_whole_picture() -> None:
    shares = np.random.default_rng(1).random((NUM_DRAWS, NUM))
    shares[0], shares[1], shares[2] = 0, 0.125, 0.9  # one line, level
    shares[3], shares[8] = 0.5, 0.1  # through the middle, dark
    pictures = draw_lines(torch.full((NUM, 3, 224, 224), 128.0), shares)[:, 0].numpy()
    columns = np.arange(4, 220)
    for picture in pictures[np.abs(pictures - 128).max((1, 2)) > 12]:
        darkest = picture[:, columns].argmin(0)
        assert (picture[:, columns].min(0) < 127).all(), "from border to border"
        straight = np.polyval(np.polyfit(columns, darkest, 2), columns)
        assert np.abs(darkest - straight).max() < 8


def test_a_picture_of_half_the_size_has_the_same_lines_half_as_wide() -> None:
    large, small = lined(224), lined(112)
    shrunk = large.reshape(NUM, 112, 2, 112, 2).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 1


@pytest.mark.parametrize(("name", "least"), [("full+lines", 0.30), ("light+lines", 0.30)])
def test_sound_pictures_get_lines_more_often_than_cracked_ones(name: str, least: float) -> None:
    assert set(AUGMENTATIONS) == {"full", "light", "full+lines", "light+lines"}
    grey, at = torch.full((2 * NUM, 64, 64, 3), 128, dtype=torch.uint8), np.arange(2 * NUM)
    labels = at % 2
    plain = Augmentation(56, 0, name.removesuffix("+lines"))(grey, 0, at, at, labels)
    found = Augmentation(56, 0, name)(grey, 0, at, at, labels)
    changed = (found != plain).flatten(1).any(1).numpy()
    assert changed[labels == 0].mean() == pytest.approx(least, abs=0.06)
    assert changed[labels == 1].mean() == pytest.approx(0.08, abs=0.04)
    assert augment._RANGES[name]._replace(lines=(0.0, 0.0)) == augment._RANGES[name.removesuffix("+lines")]
