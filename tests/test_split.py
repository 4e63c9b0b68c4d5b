"""A split has cracked and sound images to train and to validate on, whatever groups there are."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crackbatch.datasets.dataset import Dataset, with_given_split
from crackbatch.datasets.report import Report
from crackbatch.datasets.split import draw_split, write_split
from crackbatch.errors import SourceError


def draw(cells: dict[tuple[str, int], int], seed: int = 0) -> list[tuple[str, str, int]]:
    """(split, source, label) of groups of one tile each, as many of each source and label as given."""
    rows = [(source, label) for (source, label), num in cells.items() for _ in range(num)]
    names, labels = [source for source, _ in rows], np.array([label for _, label in rows])
    drawn = draw_split(names, labels, [str(row) for row in range(len(rows))], seed)
    return [(split, *row) for split, row in zip(drawn, rows, strict=True)]


@pytest.mark.parametrize(
    "cells",
    [
        {("a", 0): 6, ("a", 1): 6, ("b", 0): 6, ("b", 1): 6},
        {(name, label): 2 for name in "abcdef" for label in (0, 1)},
        {("a", 0): 40, ("a", 1): 3},
        {("a", 0): 40, ("b", 1): 12, ("c", 1): 1},
    ],
)
def test_every_split_has_both_classes_and_nobody_is_warned(cells: dict[tuple[str, int], int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            found = Counter((split, label) for split, _, label in draw(cells, seed))
            assert set(found) == {(split, label) for split in ("train", "validation", "test") for label in (0, 1)}
            assert sum(found["train", label] for label in (0, 1)) >= sum(cells.values()) / 4


def test_sources_that_are_large_enough_are_in_every_split() -> None:
    cells = {(name, label): 20 for name in "abc" for label in (0, 1)}
    assert Counter(draw(cells)) == {
        (split, *cell): 16 if split == "train" else 2 for split in ("train", "validation", "test") for cell in cells
    }


def draw_photos(photos: list[list[int]], seed: int) -> list[tuple[str, int]]:
    """(split, label) of the tiles of photos."""
    labels = np.array([label for photo in photos for label in photo])
    groups = [str(number) for number, photo in enumerate(photos) for _ in photo]
    return list(zip(draw_split(["a"] * len(labels), labels, groups, seed), labels.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_two_cracked_photos_among_many_are_one_to_train_and_one_to_validate_on(seed: int) -> None:
    found = set(draw_photos([[1] * 30, [1, 0], *([[0] * 8] * 12)], seed))
    assert {("train", 1), ("train", 0), ("validation", 1), ("validation", 0)} == found


def test_groups_of_which_no_split_is_found_are_refused_in_one_line() -> None:
    with pytest.raises(SourceError, match=r"no split of 3 groups .* sound images.*--group-pattern") as raised:
        draw_photos([[0] * 30, [1], [0, 1]], 32)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "train", "test", "test"], "has no sound images in validation: training and validation need both"),
        (["train", "validation", "validation", "validation"], "has no sound images in train"),
    ],
)
def test_a_given_split_without_both_classes_is_refused(splits: list[str], message: str, tmp_path: Path) -> None:
    labels, images = [1, 0, 0, 1], [f"{number:064x}" for number in range(4)]
    columns = {"image_uri": images, "label": labels, "group": images, "split": splits, "sha256": images}
    table = pa.table(columns)
    write_split(table, str(tmp_path / "split.parquet"))
    with pytest.raises(SourceError, match=message):
        with_given_split(Dataset(table, Report()), str(tmp_path / "split.parquet"))
