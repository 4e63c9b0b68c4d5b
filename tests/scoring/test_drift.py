"""A night that is not as those before is told: which figure, by how much, since when; an ordinary night is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFilter
import pytest

from builders.archives import write_files
from builders.pictures import encode
from builders.runs import rows, score
from crackbatch.cli.demo import draw_tile
from crackbatch.scoring.drift import Night, compare, histograms_of, stability_index

RANDOM = np.random.default_rng(0)


def table(images: int = 1000, crack: float = 0.05, failed: float = 0.01, **values: float) -> Night:
    """A night of images whose figures vary by chance around the given ones."""
    scored = images - RANDOM.binomial(images, failed)
    size = values.get("megapixels", 12.0)
    histograms = {
        "probability": np.histogram(RANDOM.beta(0.4, values.get("beta", 4.0), scored), np.linspace(0, 1, 11))[0],
        "brightness": np.histogram(RANDOM.normal(values.get("brightness", 130), 25, 500), np.linspace(0, 255, 11))[0],
        "megapixels": np.histogram(np.full(scored, size), [0, 1, 5, 20, 200])[0],
    }
    counts = {name: found.tolist() for name, found in histograms.items()}
    return Night("", "", images, scored, RANDOM.binomial(scored, crack), histograms=counts)


def dated(nights: list[Night]) -> list[Night]:
    return [replace(night, date=f"2026-11-{number:02d}") for number, night in enumerate(nights, 1)]


def test_ordinary_nights_of_all_sizes_are_as_before() -> None:
    for images in (60, 300, 3000):
        nights = dated([table(RANDOM.integers(images // 2, 2 * images)) for _ in range(30)])
        told = [compare(night, nights[:number]) for number, night in enumerate(nights)]
        assert sum(bool(drift) for drift in told) <= 1, told


@pytest.mark.parametrize(
    ("make", "figure"),
    [
        (lambda: table(brightness=60), "brightness"),
        (lambda: table(megapixels=2.0), "megapixels"),
        (lambda: table(beta=1.0), "probability"),
        (lambda: table(crack=0.2), "share of cracks"),
        (lambda: table(crack=0.0), "share of cracks"),
        (lambda: table(failed=0.1), "failed images"),
        (lambda: table(100), "images"),
        (lambda: table(20_000), "images"),
    ],
)
def test_what_is_not_as_before_is_told_with_its_first_night(make: Callable[[], Night], figure: str) -> None:
    before = dated([table() for _ in range(6)])
    night = replace(make(), date="2026-11-07")
    (first,) = (drift for drift in compare(night, before) if drift.figure == figure)
    assert (first.since, first.value > first.limit) == ("2026-11-07", True)
    again = replace(make(), date="2026-11-08")
    found = compare(again, [*before, replace(night, drift=[first])])
    assert [drift.since for drift in found if drift.figure == figure] == ["2026-11-07"]


def test_few_nights_say_nothing() -> None:
    assert compare(table(megapixels=2.0), dated([table(), table()])) == []


def test_the_index_of_equal_distributions_is_nothing_and_grows_with_the_shift() -> None:
    counts = np.array([100, 200, 300, 400])
    assert stability_index(counts, 5 * counts)[0] < 1e-4
    shifted = [stability_index(np.array([100 + by, 200, 300, 400 - by]), counts)[0] for by in (50, 100, 200)]
    assert shifted == sorted(shifted)


def test_brightness_and_sharpness_are_those_of_the_pictures(tmp_path: Path) -> None:
    def night(name: str, change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> pd.DataFrame:
        pictures = {
            f"{number}.jpg": encode(change(PIL.Image.open(io.BytesIO(draw_tile(number, False)))), "JPEG", quality=95)
            for number in range(8)
        }
        write_files(tmp_path / name, {**pictures, "bad.jpg": b"x"})
        score(tmp_path / name, tmp_path / f"{name}-out", engine="local")
        return rows(tmp_path / f"{name}-out")

    plain = histograms_of(night("plain", lambda picture: picture), "a")
    dark = histograms_of(night("dark", lambda picture: picture.point(lambda value: value // 3)), "a")
    blurred = histograms_of(night("soft", lambda picture: picture.filter(PIL.ImageFilter.GaussianBlur(4))), "a")
    assert all(sum(counts) == 8 for counts in plain.values())
    middle = {name: np.average(np.arange(len(counts)), weights=counts) for name, counts in plain.items()}
    assert np.average(np.arange(10), weights=dark["brightness"]) < middle["brightness"] - 2
    assert np.average(np.arange(10), weights=blurred["sharpness"]) < middle["sharpness"] - 1
    assert blurred["brightness"] == plain["brightness"]
