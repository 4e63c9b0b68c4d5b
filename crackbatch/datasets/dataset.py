"""A labelled dataset: images with their labels, groups and splits, without duplicates.

    list labelled images ─ read each once: sha256, picture hash ─ remove duplicates ─ split

Images are read by the code that scoring uses (`sources/plan.py`, `sources/fetch.py`, `images/picture.py`), so that a
model is trained on the same pixels that it will score.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.datasets.duplicates import clusters, components
from crackbatch.datasets.labels import LabelRules
from crackbatch.datasets.listing import LABEL_COLUMN, Listed, list_labelled
from crackbatch.datasets.report import Report
from crackbatch.datasets.split import check_split, draw_split, images_digest, read_split
from crackbatch.decoding.decoders import Decoded, Decoders
from crackbatch.errors import SourceError
from crackbatch.models.seen import read_seen, splits_of
from crackbatch.sources.fetch import fetch
from crackbatch.sources.rows import SCHEMA as PLAN_SCHEMA
from crackbatch.sources.shards import shard_sizes
from crackbatch.storage import locations
from crackbatch.storage.redaction import masked

_BATCH = 256
_NO_PIXELS = 1  # the size of pictures whose pixels are not needed


@dataclass
class Dataset:
    """Labelled images: `table` has the plan's columns and `source, path, label, group, split, sha256`.

    Images with the same `cluster` are near-duplicates of each other. Images with the same `component` must be kept
    together by a split. `guessed` is true if no path or manifest names the image's group.
    """

    table: pa.Table
    report: Report

    @property
    def labels(self) -> np.ndarray:
        """(images,) int64: 1 for a crack, 0 for none."""
        return np.asarray(self.table.column(LABEL_COLUMN)).astype(np.int64)

    @property
    def digest(self) -> str:
        """A digest of which image is in which split."""
        return images_digest(self.table.column("sha256").to_pylist(), self.table.column("split").to_pylist())

    @property
    def labels_digest(self) -> str:
        """A digest of which image has which label."""
        return images_digest(self.table.column("sha256").to_pylist(), list(map(str, self.labels.tolist())))

    def part(self, split: str) -> pa.Table:
        """Return the rows of one split."""
        return self.table.filter(pc.equal(self.table.column("split"), split))


def read_dataset(
    sources: Sequence[str],
    rules: LabelRules | None = None,
    scratch: str | None = None,
) -> Dataset:
    """Return every labelled, readable image in the sources, each once, without splits. Raises SourceError.

    Images of compressed tars are copied below `scratch`. Keep that folder for as long as the dataset is in use.
    """
    return read_listed(list_labelled(sources, rules, scratch))


def read_listed(listed: Listed) -> Dataset:
    """Return the images that can be read, each once. Raises SourceError if none can be, or if all have both labels."""
    table, hashes = _read_all(listed.table, listed.report)
    table, hashes = _drop_duplicates(table, hashes, listed.report)
    if not table.num_rows:
        raise SourceError(
            f"no images are left: all {len(listed.report.contradictions):,} have both labels, such as"
            f" {listed.report.contradictions[0]}; give each image only one label"
        )
    return Dataset(_join_near_duplicates(table, hashes, listed.report), listed.report)


def with_split(dataset: Dataset, seed: int = 0) -> Dataset:
    """Return the dataset with a newly drawn split. Raises SourceError if none is found."""
    table = dataset.table
    drawn = draw_split(
        table.column("source").to_pylist(), dataset.labels, table.column("component").to_pylist(), seed
    )  # fmt: skip
    return Dataset(_with_column(table, "split", pa.array(drawn, pa.string())), replace(dataset.report, cut=[]))


def with_given_split(dataset: Dataset, location: str) -> Dataset:
    """Return the dataset with the split of a file, or with the split that a model was trained on.

    Raises SourceError if the split does not name exactly these images, or lacks a class in train or validation.
    """
    images = dataset.table.column("sha256").to_pylist()
    splits, num_known = _given_splits(location, images)
    shown = masked(location)
    if absent := [row for row, split in enumerate(splits) if split is None]:
        uri = dataset.table.column("image_uri")[absent[0]].as_py()
        raise SourceError(
            f"split {shown} lacks {len(absent):,} of the {len(images):,} images, such as {uri}; give the same sources"
        )
    if others := num_known - len(set(images)):
        raise SourceError(f"split {shown} has {others:,} images that are not in the data; give the same sources")
    check_split(splits, dataset.labels, f"split {shown}")
    report = replace(dataset.report, cut=_cut(dataset.table.column("component").to_pylist(), splits))
    return Dataset(_with_column(dataset.table, "split", pa.array(splits, pa.string())), report)


def _cut(components: list[str], splits: list[str | None]) -> list[str]:
    """Return the components that have images in more than one split."""
    counts = Counter(component for component, _ in set(zip(components, splits, strict=True)))
    return sorted(component for component, count in counts.items() if count > 1)


def _given_splits(location: str, images: list[str]) -> tuple[list[str | None], int]:
    """Return the split of each image, None for an image without one, and how many images the location names."""
    if locations.file_name(location).lower().endswith(".parquet"):
        known = read_split(location)
        return [known.get(image) for image in images], len(known)
    if not (seen := read_seen(location)):
        raise SourceError(f"--split must be a .parquet file or a model that lists its images, got {masked(location)}")
    return splits_of(images, seen), len(seen)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image's bytes, or None and a status that says why."""

    data: bytes | None
    status: str | None


def read_encoded(table: pa.Table, most: int = _BATCH) -> Iterator[list[Encoded]]:
    """Yield the rows of a dataset's table with their bytes, in order, in batches of at most `most` rows.

    Memory never holds all of them.
    """
    start = 0
    for size in shard_sizes(table):
        for block in fetch(table.slice(start, size).select(PLAN_SCHEMA.names)):
            data, statuses = block.column("bytes"), block.column("status").to_pylist()
            for first in range(0, block.num_rows, most):
                items = data[first : first + most].to_pylist()
                yield [Encoded(*item) for item in zip(items, statuses[first : first + most], strict=True)]
        start += size


def read_decoded(table: pa.Table, decoders: Decoders) -> Iterator[Decoded]:
    """Yield the rows of a dataset's table decoded, in order and in batches.

    An image that cannot be read has the status that says why. The pixels stay valid until the next batch is asked for.
    """
    under_way: deque[list[Encoded]] = deque()

    def encoded() -> Iterator[list[bytes]]:
        for batch in read_encoded(table, decoders.batch_size):
            under_way.append(batch)
            yield [image.data for image in batch if image.data is not None]

    for decoded in decoders.decode(encoded()):
        yield _with_unread(under_way.popleft(), decoded)


def _with_unread(batch: list[Encoded], decoded: Decoded) -> Decoded:
    """Return the facts of all images, from those of the images that have bytes."""
    if all(image.data is not None for image in batch):
        return decoded
    columns = {}
    for name, column in decoded.facts.items():
        known = iter(column)
        unread = [(image.status or "failed") if name == "status" else None for image in batch]
        columns[name] = [
            next(known) if image.data is not None else value for image, value in zip(batch, unread, strict=True)
        ]
    return Decoded(columns, decoded.pixels)


def _read_all(table: pa.Table, report: Report) -> tuple[pa.Table, list[bytes | None]]:
    """Return the readable rows with their sha256, and the hashes of their pictures; count the others in the report."""
    digests: list[str | None] = []
    hashes: list[bytes | None] = []
    with Decoders(_NO_PIXELS, batch_size=_BATCH, looks=True) as decoders:
        for facts, _ in read_decoded(table, decoders):
            for status, digest, looks in zip(facts["status"], facts["sha256"], facts["looks"], strict=True):
                digests.append(digest if status == "ok" else None)
                hashes.append(bytes.fromhex(looks) if looks else None)
                if status != "ok":
                    report.unreadable[status] += 1
    table = table.append_column("sha256", pa.array(digests, pa.string()))
    kept = np.flatnonzero(np.asarray(table.column("sha256").is_valid()))
    if not len(kept):
        raise SourceError(f"none of the {table.num_rows:,} labelled images can be read: {dict(report.unreadable)}")
    return table.take(kept), [hashes[row] for row in kept]


def _drop_duplicates(
    table: pa.Table, hashes: list[bytes | None], report: Report
) -> tuple[pa.Table, list[bytes | None]]:
    """Keep the first of the images with the same bytes, or none of them if their labels disagree."""
    digests, labels = table.column("sha256").to_pylist(), table.column(LABEL_COLUMN).to_pylist()
    said: dict[str, set[int]] = {}
    for digest, label in zip(digests, labels, strict=True):
        said.setdefault(digest, set()).add(label)
    kept, seen = [], set()
    for row, digest in enumerate(digests):
        if len(said[digest]) > 1:
            if digest not in seen:
                report.contradictions.append(str(table.column("image_uri")[row]))
        elif digest in seen:
            report.duplicates += 1
        else:
            kept.append(row)
        seen.add(digest)
    return table.take(pa.array(kept, pa.int64())), [hashes[row] for row in kept]


def _join_near_duplicates(table: pa.Table, hashes: list[bytes | None], report: Report) -> pa.Table:
    """Add the columns `cluster` (near-duplicates) and `component` (what a split must keep together).

    A block of names is only a guess at a photo, so a near-duplicate moves from its block to the group of its twin.
    Groups that are known to be photos are joined as a whole.
    """
    groups, guessed = table.column("group").to_pylist(), table.column("guessed").to_pylist()
    cluster = clusters(hashes)
    sizes = np.bincount(cluster)
    rows = np.flatnonzero(sizes[cluster] > 1)
    report.near_duplicates, report.alike = int(np.sum(sizes > 1)), len(rows)
    leader: dict[int, int] = {}
    for row in sorted(rows.tolist(), key=lambda row: (guessed[row], row)):
        leader.setdefault(cluster[row], row)
    for row in rows.tolist():
        if guessed[row]:
            groups[row] = groups[leader[cluster[row]]]
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    joined = components(np.stack([codes[rows], codes[cluster[rows]]], axis=1), len(names))
    table = _with_column(table, "group", pa.array(groups, pa.string()))
    table = table.append_column("cluster", pa.array(cluster))
    first = names[np.unique(joined, return_index=True)[1]]  # a component is named after its first group
    return table.append_column("component", pa.array(first[joined[codes]], pa.string()))


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)
