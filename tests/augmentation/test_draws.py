"""Random numbers of images are even and independent."""

from __future__ import annotations

import numpy as np

from crackbatch.augmentation.draws import uniforms


def test_random_numbers_are_even_and_independent() -> None:
    places = np.arange(20_000)
    shares = uniforms((0, 1, places, places), 4)
    assert ((shares >= 0) & (shares < 1)).all()
    counts = np.stack([np.histogram(row, 20, (0, 1))[0] for row in shares])
    assert (((counts - 1000) ** 2 / 1000).sum(1) < 44).all()  # chi-squared of 19: one in a thousand is above 43.8
    neighbours = np.concatenate([shares[:, 1:], shares[:, :-1]])  # of this image and of the one before
    assert (np.abs(np.corrcoef(neighbours) - np.eye(8)) < 0.03).all()
