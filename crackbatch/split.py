"""Train, validation and test: drawn by group and stratified, written as a table, and given back the same."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch import storage
from crackbatch.errors import SourceError
from crackbatch.redaction import redact

SPLITS = ("train", "validation", "test")
COLUMNS = ["image_uri", "label", "group", "split", "sha256"]
_FOLDS = 10  # validation and test are one tenth each


def draw_split(strata: Sequence[str], labels: np.ndarray, groups: Sequence[str], seed: int) -> list[str]:
    """`train`, `validation` or `test` for each image, about 80:10:10, no group in two, every stratum in all.

    With two groups in a class there is no test split. Raises SourceError where a class is absent or has one group.
    """
    from sklearn.model_selection import StratifiedGroupKFold

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
    drawn = np.full(len(cells), "train", dtype=object)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    held_out = ["validation", "test"] if folds > 2 else ["validation"]
    for name, (_, indices) in zip(held_out, splitter.split(cells, cells, codes), strict=False):
        drawn[indices] = name
    return list(drawn)


def write_split(table: pa.Table, location: str) -> None:
    """Write the split of a dataset's table as Parquet, sorted by image."""
    sink = pa.BufferOutputStream()
    shown = table.select(COLUMNS).sort_by("image_uri")
    pq.write_table(shown, sink, compression="zstd")
    storage.write_whole(location, sink.getvalue().to_pybytes())


def read_split(location: str) -> dict[str, str]:
    """sha256 → split, as `write_split` wrote it; SourceError where it is no such table."""
    shown = redact(location)
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.normalize(location))), columns=["sha256", "split"])
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


def digest_of(sha256: Sequence[str], splits: Sequence[str]) -> str:
    """A digest of which image stands in which split, whatever the order and wherever the files lie."""
    lines = sorted(f"{image} {split}" for image, split in zip(sha256, splits, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
