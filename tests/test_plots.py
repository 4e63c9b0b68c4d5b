"""Figures show what was measured, whatever the sources are called."""

from __future__ import annotations

import io
import warnings

import numpy as np
import PIL.Image
import pytest

from crackbatch.metrics import Scored
from crackbatch.plots import plot_confusion, plot_ranking, plot_reliability


@pytest.fixture
def scored() -> Scored:
    """The first half of the cracks found without a false alarm, the second only after two of them."""
    probabilities = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    return Scored(probabilities, np.array([1, 0, 0, 1]), np.arange(4))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("name", ["a$^$b", "$", "_mine", "橋", "two\nlines"])
def test_a_source_of_any_name_is_drawn_and_nothing_is_warned_of(scored: Scored, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = [
            plot_ranking({name: scored}, 0.5),
            plot_reliability({name: scored}),
            plot_confusion({name: (1, 2, 3, 4)}, 0.5),
        ]
        plain = [
            plot_ranking({"mine": scored}, 0.5),
            plot_reliability({"mine": scored}),
            plot_confusion({"mine": (1, 2, 3, 4)}, 0.5),
        ]
    for with_name, other in zip(named, plain, strict=True):
        assert not np.array_equal(pixels(with_name), pixels(other)), "the name is in the picture"
