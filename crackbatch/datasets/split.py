"""Splits into train, validation and test: drawn by group and stratified, written as a table, and read again."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.errors import OptionError, SourceError
from crackbatch.storage import locations
from crackbatch.storage.documents import read_table, write_table
from crackbatch.storage.redaction import masked, redact

SPLITS = ("train", "validation", "test")
COLUMNS = ["image_uri", "label", "group", "split", "sha256"]
_FOLDS = 10  # validation and test are one tenth each
_DRAWS = 20  # if there are few groups, one draw may leave a split without cracks


def check_seed(seed: int) -> None:
    """Raise OptionError if the seed is out of range."""
    if not 0 <= seed < 2**32:
        raise OptionError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")


def draw_split(strata: Sequence[str], labels: np.ndarray, groups: Sequence[str], seed: int) -> list[str]:
    """Return `train`, `validation` or `test` for each image, about 80:10:10, with no group in two of them.

    Strata are spread as evenly as the groups allow. Train and validation have both classes; test has both if possible.
    If a class has only two groups, there is no test split. Raises SourceError if a class has no images or only one
    group, or if no such split is found, as with a few large groups.
    """
    names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    fewest = {label: len(np.unique(codes[labels == label])) for label in (0, 1)}
    for label, count in fewest.items():
        shown, first = "cracked" if label else "sound", names[codes[labels == label]][:1]
        if count == 0:
            raise SourceError(
                f"no {shown} images: training needs both classes; name their folders with"
                f" --{'positive' if label else 'negative'}, or give a manifest with a column label"
            )
        if count == 1:
            raise SourceError(
                f"all {int((labels == label).sum()):,} {shown} images are in one group ({first[0]}): training and"
                " validation need at least one group each; define smaller groups with --group-pattern"
            )
    folds = min(_FOLDS, *fewest.values())
    cells = [f"{stratum}\0{label}" for stratum, label in zip(strata, labels.tolist(), strict=True)]
    if Counter(cells).most_common(1)[0][1] < folds:  # sources this small cannot all be in every split
        cells = list(map(str, labels.tolist()))
    random = np.random.RandomState(seed)
    found = None
    for number in range(_DRAWS):
        drawn = _draw(cells, labels, codes, max(2, folds - number), random)
        if not _missing(drawn, labels, SPLITS[: min(folds, 3)]):
            return drawn
        if not (missing := _missing(drawn, labels, SPLITS[:2])):
            found = found or drawn  # good enough to train on, but the test split lacks a class
    if found is None:
        split, shown = missing[0]
        raise SourceError(
            f"no split of {len(names):,} groups was found in which {split} has {shown} images: the groups are too few"
            " or too uneven; define smaller groups with --group-pattern, or give your own --split"
        )
    return found


def _draw(
    cells: Sequence[str], labels: np.ndarray, codes: np.ndarray, folds: int, random: np.random.RandomState
) -> list[str]:
    """Draw a split once; the first folds that have both classes are held out."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about cells with fewer images than folds, which are fine
        parts = [rows for _, rows in splitter.split(cells, cells, codes)]
    parts.sort(key=lambda rows: len(set(labels[rows].tolist())) < 2)
    drawn = np.full(len(cells), SPLITS[0], dtype=object)
    for name, rows in zip(SPLITS[1 : min(folds, 3)], parts, strict=False):
        drawn[rows] = name
    return list(drawn)


def check_split(splits: Sequence[str | None], labels: np.ndarray, shown: str) -> None:
    """Raise SourceError if train or validation does not have both classes."""
    for split, images in _missing(splits, labels, SPLITS[:2]):
        raise SourceError(f"{shown} has no {images} images in {split}: training and validation need both classes")


def _missing(splits: Sequence[str | None], labels: np.ndarray, needed: Sequence[str]) -> list[tuple[str, str]]:
    """Return (split, kind of images) for each class that a needed split lacks."""
    there = set(zip(splits, labels.tolist(), strict=True))
    kinds = ((0, "sound"), (1, "cracked"))
    return [(split, shown) for split in needed for label, shown in kinds if (split, label) not in there]


def write_split(table: pa.Table, location: str) -> None:
    """Write the split of a dataset's table as Parquet, sorted by image."""
    write_table(location, table.select(COLUMNS).sort_by("image_uri"))


def read_split(location: str) -> dict[str, str]:
    """Return sha256 → split from a table that `write_split` wrote. Raises SourceError for anything else."""
    shown = masked(location)
    try:
        table = read_table(locations.normalize(location), columns=["sha256", "split"])
    except FileNotFoundError:
        raise SourceError(f"split file {shown} does not exist") from None
    except Exception as error:  # pyarrow and each storage raise their own exceptions
        raise SourceError(f"{shown} cannot be read as a split ({redact(str(error), location)})") from None
    if table.column_names != ["sha256", "split"] or (
        unknown := set(pc.unique(table.column("split")).to_pylist()) - set(SPLITS)
    ):
        what = f"its column split has {unknown}" if table.num_columns == 2 else "it has no columns sha256 and split"
        raise SourceError(f"{shown} is not a split file: {what}; give a split.parquet that crackbatch wrote")
    return dict(zip(*(table.column(name).to_pylist() for name in ("sha256", "split")), strict=True))


def images_digest(sha256: Sequence[str], said: Sequence[str]) -> str:
    """Return a digest of each image and its text (its split, say); neither order nor file locations change it."""
    lines = sorted(f"{image} {word}" for image, word in zip(sha256, said, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
