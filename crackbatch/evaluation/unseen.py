"""Chooses the labelled images that a model has not seen: only they show how good it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.datasets.dataset import Dataset
from crackbatch.errors import SourceError
from crackbatch.models.bundle import Bundle
from crackbatch.models.seen import LEARNT, read_learnt, splits_of


def choose_unseen(dataset: Dataset, bundle: Bundle) -> tuple[pa.Table, dict[str, int]]:
    """Return the images to measure on, and how many images were left out for each reason.

    An image is left out if the model, or a model that it was trained from, was trained or tuned on it (counted by
    split), on a near-duplicate of it, or on another tile of its photo, if paths or a manifest name photos. Raises
    SourceError if none is left.
    """
    table = dataset.table
    splits = np.array(splits_of(table.column("sha256").to_pylist(), read_learnt(bundle.location)), dtype=object)
    left_out = {split: splits == split for split in LEARNT}
    learnt = np.logical_or.reduce(list(left_out.values()))
    if not learnt.any():
        return table, {}
    named = ~np.asarray(table.column("guessed"))
    of_photo = named & _sharing(table.column("group"), learnt & named)
    alike = _sharing(table.column("cluster"), learnt)
    left_out |= {"same_photos": of_photo & ~learnt, "near_duplicates": alike & ~of_photo & ~learnt}
    kept = np.flatnonzero(~(learnt | of_photo | alike))
    if not len(kept):
        raise SourceError(
            f"model {bundle.name}, or a model that it was trained from, was trained or tuned on all {table.num_rows:,}"
            " images, or on their near-duplicates or other tiles of their photos, so results would look too good; give"
            " other images, or use --include-seen to measure on these"
        )
    return table.take(pa.array(kept)), {why: int(rows.sum()) for why, rows in left_out.items() if rows.any()}


def _sharing(column: pa.ChunkedArray, chosen: np.ndarray) -> np.ndarray:
    """Return (rows,) bool: whether a row has the same value as a chosen row."""
    return np.asarray(pc.is_in(column, pc.unique(column.filter(pa.array(chosen)))))
