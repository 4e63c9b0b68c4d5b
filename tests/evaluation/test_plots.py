"""Figures show what was measured, whatever the sources are called."""

from __future__ import annotations

import io
import warnings

import numpy as np
import PIL.Image
import pytest

from crackbatch.evaluation.metrics import Scored
from crackbatch.evaluation.plots import plot_confusion, plot_ranking, plot_reliability

_LINE = (31, 119, 180)  # of the first source


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


def test_the_precision_of_a_step_stands_over_the_recall_that_it_gains(scored: Scored) -> None:
    picture = pixels(plot_ranking({"mine": scored}, 0.95))
    line = np.abs(picture[:, : picture.shape[1] // 2].astype(int) - _LINE).sum(axis=2) < 30
    rows, columns = np.nonzero(line)
    # The legend's short line is below the curves; of the curve, only the steps run far along one row of pixels.
    lengths = np.bincount(rows)
    steps = [columns[rows == row] for row in np.flatnonzero(lengths > picture.shape[1] // 10)]
    perfect, half = steps[0], steps[-1]
    assert perfect.max() <= half.min() + 5, "precision 1 up to a recall of 0.5, and 0.5 from there on"
    assert len(perfect) == pytest.approx(len(half), rel=0.1)
