"""An overview of labelled data, to check before training: counts, what was left out, and a sheet of pictures."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crackbatch.datasets.dataset import Dataset, read_dataset, read_encoded, with_given_split, with_split
from crackbatch.datasets.labels import LabelRules
from crackbatch.datasets.split import SPLITS, check_seed, write_split
from crackbatch.images.picture import read_image
from crackbatch.images.sheet import Tile, contact_sheet
from crackbatch.sources.listing import check_sources
from crackbatch.storage import atomic, locations

_SHOWN = 8


@dataclass(frozen=True)
class Overview:
    """Counts of labelled images.

    `counts` maps (source, label, split) to (images, groups), with labels `crack` and `no_crack`. `notes` say how images
    were grouped, and what was left out and why. `digest` is the digest of the split.
    """

    counts: dict[tuple[str, str, str], tuple[int, int]]
    notes: list[str]
    digest: str
    files: list[str]


def describe_dataset(
    sources: locations.Location | Sequence[locations.Location],
    out: locations.Location = "dataset",
    *,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    group_pattern: str | None = None,
    group_column: str = "group",
    split: locations.Location | None = None,
    seed: int = 0,
) -> Overview:
    """Count labelled images by source, label, split and group, and write `split.parquet` and `dataset.png` to `out`.

    Without `split`, it draws the split that `train` would draw with the same seed. Raises RequestError.
    """
    check_seed(seed)
    names = check_sources(sources)
    rules = LabelRules(tuple(positive), tuple(negative), group_pattern, group_column)
    location = atomic.check_output(os.fspath(out))
    with tempfile.TemporaryDirectory(prefix="crackbatch-dataset-") as scratch:
        dataset = read_dataset(names, rules, scratch)
        dataset = with_given_split(dataset, os.fspath(split)) if split else with_split(dataset, seed)
        files = [locations.join(location, name) for name in ("split.parquet", "dataset.png")]
        write_split(dataset.table, files[0])
        atomic.write_whole(files[1], _sheet(dataset, seed))
    notes = [*dataset.report.groupings(), *dataset.report.lines()]
    return Overview(_count(dataset), notes, dataset.digest, files)


def _count(dataset: Dataset) -> dict[tuple[str, str, str], tuple[int, int]]:
    images: Counter[tuple[str, str, str]] = Counter()
    groups: dict[tuple[str, str, str], set[str]] = {}
    columns = [dataset.table.column(name).to_pylist() for name in ("source", "label", "split", "group")]
    for source, label, split, group in zip(*columns, strict=True):
        key = (source, "crack" if label else "no_crack", split)
        images[key] += 1
        groups.setdefault(key, set()).add(group)
    order = sorted(images, key=lambda key: (key[0], key[1], SPLITS.index(key[2])))
    return {key: (images[key], len(groups[key])) for key in order}


def _sheet(dataset: Dataset, seed: int) -> bytes:
    """Return a contact sheet (PNG) of random pictures of each source and label, which makes wrong labels visible."""
    random = np.random.default_rng(seed)
    sections = {}
    names = np.asarray(dataset.table.column("source").to_pylist(), dtype=object)
    for source in sorted(set(names.tolist())):
        for label, shown in ((1, "crack"), (0, "no crack")):
            mine = np.flatnonzero((names == source) & (dataset.labels == label))
            chosen = np.sort(random.choice(mine, min(_SHOWN, len(mine)), replace=False)) if len(mine) else mine
            rows = dataset.table.take(pa.array(chosen))
            images = [image for batch in read_encoded(rows) for image in batch]
            pictures = [read_image(image.data or b"").pixels for image in images]
            paths = rows.column("path").to_pylist()
            tiles = [
                Tile(picture, [path.rpartition("/")[2], path.rpartition("/")[0]])
                for picture, path in zip(pictures, paths, strict=True)
                if picture is not None
            ]
            sections[f"{source}: {shown} ({len(mine):,})"] = tiles
    return contact_sheet(sections)
