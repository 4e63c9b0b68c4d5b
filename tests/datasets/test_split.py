"""A split has cracked and sound images on every side, no photo on two, and is given back the same."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.labelled import sides
from builders.pictures import make_photos
from builders.servers import WholeFiles, serving
from crackbatch import describe_dataset
from crackbatch.datasets.dataset import Dataset, read_dataset, with_given_split, with_split
from crackbatch.datasets.report import Report
from crackbatch.datasets.split import draw_split, write_split
from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.models.seen import write_seen


def test_no_photo_stands_on_two_sides_and_every_side_has_both_labels(tmp_path: Path) -> None:
    dataset = with_split(read_dataset([str(make_photos(tmp_path / "deck"))]))
    assert all(len(splits) == 1 for splits in sides(dataset, "group").values())
    for split in ("train", "validation", "test"):
        assert set(dataset.part(split).column("label").to_pylist()) == {0, 1}


def test_the_same_seed_draws_the_same_split(tmp_path: Path) -> None:
    dataset = read_dataset([str(make_photos(tmp_path / "deck"))])
    assert with_split(dataset, 3).digest == with_split(dataset, 3).digest != with_split(dataset, 4).digest


def test_one_photo_cannot_be_split(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck", num_photos=1)
    with pytest.raises(SourceError, match=r"one group \(deck/D/7000\).*--group-pattern"):
        with_split(read_dataset([str(folder)]))


def test_a_given_split_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    here = with_split(read_dataset([str(make_photos(tmp_path / "here" / "deck"))]))
    write_split(here.table, str(tmp_path / "split.parquet"))
    there = read_dataset([str(make_photos(tmp_path / "there" / "deck"))])
    assert with_given_split(there, str(tmp_path / "split.parquet")).digest == here.digest
    images, splits = (here.table.column(name).to_pylist() for name in ("sha256", "split"))
    write_seen(str(tmp_path / "model"), images, splits)
    assert with_given_split(there, str(tmp_path / "model")).digest == here.digest, "that of a model is the same"
    assert pq.read_schema(tmp_path / "split.parquet").names == ["image_uri", "label", "group", "split", "sha256"]
    with serving(tmp_path, WholeFiles) as base:
        assert with_given_split(there, f"{base}/split.parquet?signature=a.b/c").digest == here.digest


def test_what_is_no_split_is_refused_in_one_line(tmp_path: Path) -> None:
    dataset = read_dataset([str(make_photos(tmp_path / "deck"))])
    (tmp_path / "split.csv").write_text("sha256,split")
    with pytest.raises(SourceError, match=r"--split must be a \.parquet file or a model .*split\.csv"):
        with_given_split(dataset, str(tmp_path / "split.csv"))
    (tmp_path / "model").mkdir()
    write_seen(str(tmp_path / "model"), dataset.table.column("sha256").to_pylist(), ["train"] * len(dataset.table))
    file = tmp_path / "model" / "seen.parquet"
    for damaged in (file.read_bytes()[:-20], bytes(40) + file.read_bytes()[40:], b"", b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model .*: seen\.parquet cannot be read"):
            with_given_split(dataset, str(tmp_path / "model"))


def test_a_split_of_other_images_is_refused(tmp_path: Path) -> None:
    dataset = with_split(read_dataset([str(make_photos(tmp_path / "deck"))]))
    write_split(dataset.table, str(tmp_path / "split.parquet"))
    fewer = read_dataset([str(make_photos(tmp_path / "fewer" / "deck", 6))])
    with pytest.raises(SourceError, match="has 24 images that are not in the data"):
        with_given_split(fewer, str(tmp_path / "split.parquet"))
    more = read_dataset([str(make_photos(tmp_path / "more" / "deck", 13))])
    with pytest.raises(SourceError, match="lacks 4 of the 52 images, such as"):
        with_given_split(more, str(tmp_path / "split.parquet"))
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read as a split"):
        with_given_split(dataset, str(tmp_path / "none.parquet"))
    with pytest.raises(SourceError, match=r"must be a \.parquet file or a model"):
        with_given_split(dataset, str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="concrete-resnet18 lacks 48 of the 48 images"):
        with_given_split(dataset, "concrete-resnet18")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused_before_reading(seed: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"--seed must be from 0 to .*, got {seed}"):
        describe_dataset("nowhere", str(tmp_path / "out"), seed=seed)


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
