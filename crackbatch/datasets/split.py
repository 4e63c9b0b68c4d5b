"""Train, validation and test: drawn by group and stratified, written as a table, and given back the same."""

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
from crackbatch.storage.redaction import redact

SPLITS = ("train", "validation", "test")
COLUMNS = ["image_uri", "label", "group", "split", "sha256"]
_FOLDS = 10  # validation and test are one tenth each
_DRAWS = 20  # where groups are few, one draw may leave a split without cracks


def check_seed(seed: int) -> None:
    """Raise OptionError for a number that seeds no draw."""
    if not 0 <= seed < 2**32:
        raise OptionError(f"--seed {seed}: give a number from 0 to {2**32 - 1}")


def draw_split(strata: Sequence[str], labels: np.ndarray, groups: Sequence[str], seed: int) -> list[str]:
    """`train`, `validation` or `test` for each image, about 80:10:10, no group in two, strata as even as groups allow.

    Both classes are in train and validation, and in test if they can be; with two groups in a class there is no test
    split. Raises SourceError where a class is absent or has one group, or where large groups leave no such split.
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
                f"all {int((labels == label).sum()):,} {shown} images are of one group ({first[0]}): training"
                " and validation need one each; say what tells photos apart with --group-pattern"
            )
    folds = min(_FOLDS, *fewest.values())
    cells = [f"{stratum}\0{label}" for stratum, label in zip(strata, labels.tolist(), strict=True)]
    if Counter(cells).most_common(1)[0][1] < folds:  # sources this small cannot each be in every split
        cells = list(map(str, labels.tolist()))
    random = np.random.RandomState(seed)
    found = None
    for number in range(_DRAWS):
        drawn = _draw(cells, labels, codes, max(2, folds - number), random)
        if not _missing(drawn, labels, SPLITS[: min(folds, 3)]):
            return drawn
        if not (missing := _missing(drawn, labels, SPLITS[:2])):
            found = found or drawn  # good to train with, if not to measure with
    if found is None:
        split, shown = missing[0]
        raise SourceError(
            f"no split of {len(names):,} groups was found in which {split} has {shown} images: they are too few or too"
            " uneven; say what tells photos apart with --group-pattern, or give a --split of your own"
        )
    return found


def _draw(
    cells: Sequence[str], labels: np.ndarray, codes: np.ndarray, folds: int, random: np.random.RandomState
) -> list[str]:
    """A draw, in which the first of the folds that have both classes are held out."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cell with fewer images than folds, which is no fault
        parts = [rows for _, rows in splitter.split(cells, cells, codes)]
    parts.sort(key=lambda rows: len(set(labels[rows].tolist())) < 2)
    drawn = np.full(len(cells), SPLITS[0], dtype=object)
    for name, rows in zip(SPLITS[1 : min(folds, 3)], parts, strict=False):
        drawn[rows] = name
    return list(drawn)


def check_split(splits: Sequence[str | None], labels: np.ndarray, shown: str) -> None:
    """Raise SourceError where a split has not both classes to train and to validate on."""
    for split, images in _missing(splits, labels, SPLITS[:2]):
        raise SourceError(f"{shown} has no {images} images in {split}: training and validation need both classes")


def _missing(splits: Sequence[str | None], labels: np.ndarray, needed: Sequence[str]) -> list[tuple[str, str]]:
    """(split, what images) that a split ought to have and does not."""
    there = set(zip(splits, labels.tolist(), strict=True))
    kinds = ((0, "sound"), (1, "cracked"))
    return [(split, shown) for split in needed for label, shown in kinds if (split, label) not in there]


def write_split(table: pa.Table, location: str) -> None:
    """Write the split of a dataset's table as Parquet, sorted by image."""
    write_table(location, table.select(COLUMNS).sort_by("image_uri"))


def read_split(location: str) -> dict[str, str]:
    """sha256 → split, as `write_split` wrote it; SourceError where it is no such table."""
    shown = redact(location)
    try:
        table = read_table(locations.normalize(location), columns=["sha256", "split"])
    except FileNotFoundError:
        raise SourceError(f"no such split file: {shown}") from None
    except Exception as error:  # pyarrow's and each storage's own
        raise SourceError(f"{shown} cannot be read as a split ({redact(str(error))})") from None
    if table.column_names != ["sha256", "split"] or (
        unknown := set(pc.unique(table.column("split")).to_pylist()) - set(SPLITS)
    ):
        what = f"it names {unknown}" if table.num_columns == 2 else "it has no columns sha256 and split"
        raise SourceError(f"{shown} is no split: {what}; crackbatch train writes one as split.parquet")
    return dict(zip(*(table.column(name).to_pylist() for name in ("sha256", "split")), strict=True))


def images_digest(sha256: Sequence[str], said: Sequence[str]) -> str:
    """A digest of what is said of which image (its split, say), whatever the order and wherever the files lie."""
    lines = sorted(f"{image} {word}" for image, word in zip(sha256, said, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
