"""A labelled dataset: images with their labels, groups and splits, duplicates taken out.

    sources ─ plan ─ labels and groups from paths ─ read once: sha256, picture hash ─ duplicates out ─ split

Reading is scoring's (`plan.py`, `fetch.py`, `image.py`), so that what trains is what will be scored.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch import storage
from crackbatch.duplicates import near_pairs, picture_hash
from crackbatch.errors import SourceError
from crackbatch.fetch import fetch
from crackbatch.image import EXTENSIONS, read_image
from crackbatch.labels import LabelRules, name_blocks, parse_label
from crackbatch.plan import make_plan
from crackbatch.plan_rows import SCHEMA as PLAN_SCHEMA
from crackbatch.redaction import redact
from crackbatch.seen import read_seen, splits_of
from crackbatch.shards import shard_sizes
from crackbatch.source import root_of
from crackbatch.split import check_split, digest_of, draw_split, read_split
from crackbatch.table import CARRIED

LABEL_COLUMN = "label"
# More sub-folders than this are dates or structures, not kinds of images that metrics should be kept apart for.
_MAX_PARTS = 12
_MAX_EXAMPLES = 5
_BATCH = 256
_GUESS = "blocks of neighbouring names"


@dataclass
class Report:
    """What was found in the sources and left out: counts, and examples of what needs a person's look.

    `grouped` counts labelled images by what told their groups; `cut` are components (groups, joined by near-duplicates)
    that stand on several sides of the split, None where there is no split.
    """

    unlabelled: int = 0
    listed_twice: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    contradictions: list[str] = field(default_factory=list)
    near_duplicates: int = 0
    problems: list[str] = field(default_factory=list)
    grouped: Counter[str] = field(default_factory=Counter)
    cut: list[str] | None = None

    def groupings(self) -> list[str]:
        """What told the groups, and where they are no more than a guess."""
        doubt = {_GUESS: ", for want of names that say which photos they are of: a guess (see --group-pattern)"}
        return [
            f"{count:,} images are grouped by {name}{doubt.get(name, '')}" for name, count in self.grouped.most_common()
        ]

    def lines(self) -> list[str]:
        """The report as a person reads it; nothing where nothing was left out."""
        said = []
        if self.unlabelled:
            said.append(f"{self.unlabelled:,} images without a label were passed over")
        if self.listed_twice:
            said.append(
                f"{self.listed_twice:,} images are listed twice in a manifest: the first line of each was taken"
            )
        if self.unreadable:
            statuses = ", ".join(f"{name} {count:,}" for name, count in self.unreadable.most_common())
            said.append(f"{self.unreadable.total():,} images cannot be read and were passed over ({statuses})")
        if self.duplicates:
            said.append(f"{self.duplicates:,} exact duplicates were dropped")
        if self.contradictions:
            examples = "; ".join(self.contradictions[:_MAX_EXAMPLES])
            said.append(f"{len(self.contradictions):,} images stand under both labels and were dropped: {examples}")
        if self.near_duplicates:
            where = "are kept on one side of the split" if self.cut == [] else "were found"
            said.append(f"{self.near_duplicates:,} pairs of near-duplicates {where}")
        if self.cut:
            said.append(
                f"warning: {len(self.cut):,} groups (told by {', '.join(self.grouped)}), such as {self.cut[0]}, have"
                " images or near-duplicates of them on several sides of the given split, so that measures look better"
                " than they are; without --split one is drawn that keeps them together"
            )
        return said + [f"damaged: {problem}" for problem in self.problems]


@dataclass
class Dataset:
    """Labelled images: `table` has the plan's columns and `source, path, label, group, split, sha256`."""

    table: pa.Table
    report: Report

    @property
    def labels(self) -> np.ndarray:
        """(images,) int64: 1 for a crack."""
        return np.asarray(self.table.column(LABEL_COLUMN)).astype(np.int64)

    @property
    def digest(self) -> str:
        """Which image stands in which split."""
        return digest_of(self.table.column("sha256").to_pylist(), self.table.column("split").to_pylist())

    @property
    def labels_digest(self) -> str:
        """Which image has which label."""
        return digest_of(self.table.column("sha256").to_pylist(), list(map(str, self.labels.tolist())))

    def part(self, split: str) -> pa.Table:
        """The rows of one split."""
        return self.table.filter(pc.equal(self.table.column("split"), split))


@dataclass(frozen=True)
class Listed:
    """Labelled images that were listed and not read yet."""

    table: pa.Table
    report: Report


def read_dataset(
    sources: Sequence[str],
    rules: LabelRules | None = None,
    scratch: str | None = None,
) -> Dataset:
    """Every labelled, readable image in the sources, each once, without splits; raises SourceError.

    Images of compressed tars are copied below `scratch`, which must outlast the dataset.
    """
    return read_listed(list_labelled(sources, rules, scratch))


def list_labelled(
    sources: Sequence[str],
    rules: LabelRules | None = None,
    scratch: str | None = None,
) -> Listed:
    """The images that have a label, none of them read; raises SourceError where there are none."""
    rules, report = rules or LabelRules(), Report()
    tables = []
    for source, name, collection in zip(sources, _source_names(sources), _collections(sources, rules), strict=True):
        # A line for each of its labels stays, for both to be reported.
        plan = make_plan([source], EXTENSIONS, scratch=scratch, apart=[CARRIED + LABEL_COLUMN])
        report.problems.extend(plan.listing.problems)
        report.listed_twice += plan.listing.passed_over["images listed twice"]
        tables.append(_label(plan.table, source, name, collection, rules, report))
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise SourceError(
            f"no labelled images in {', '.join(map(redact, sources))}: {report.unlabelled:,} images, none in a"
            " folder such as Positive or Negative, crack or no_crack (see --positive, --negative; or give a manifest)"
        )
    return Listed(table, report)


def read_listed(listed: Listed) -> Dataset:
    """The images that can be read, each once; raises SourceError where none can be, or all are under both labels."""
    table, hashes = _read_all(listed.table, listed.report)
    table, hashes = _drop_duplicates(table, hashes, listed.report)
    if not table.num_rows:
        raise SourceError(
            f"no images are left: all {len(listed.report.contradictions):,} stand under both labels, such as"
            f" {listed.report.contradictions[0]}; leave each in one folder"
        )
    return Dataset(_join_near_duplicates(table, hashes, listed.report), listed.report)


def with_split(dataset: Dataset, seed: int = 0) -> Dataset:
    """The dataset with a split drawn; raises SourceError where it cannot be."""
    table = dataset.table
    drawn = draw_split(
        table.column("source").to_pylist(), dataset.labels, table.column("component").to_pylist(), seed
    )  # fmt: skip
    return Dataset(_with_column(table, "split", pa.array(drawn, pa.string())), replace(dataset.report, cut=[]))


def with_given_split(dataset: Dataset, location: str) -> Dataset:
    """The dataset with the split of a file, or the one that a model was made on; SourceError where it is another's.

    It names these images and no others, and has both classes to train and to validate on.
    """
    images = dataset.table.column("sha256").to_pylist()
    splits, num_known = _given_splits(location, images)
    shown = redact(location)
    if absent := [row for row, split in enumerate(splits) if split is None]:
        uri = dataset.table.column("image_uri")[absent[0]].as_py()
        raise SourceError(f"split {shown} does not name {len(absent):,} of the {len(images):,} images, such as {uri}")
    if others := num_known - len(set(images)):
        raise SourceError(f"split {shown} names {others:,} images that are not in the data; give the same sources")
    check_split(splits, dataset.labels, f"split {shown}")
    report = replace(dataset.report, cut=_cut(dataset.table.column("component").to_pylist(), splits))
    return Dataset(_with_column(dataset.table, "split", pa.array(splits, pa.string())), report)


def _cut(components: list[str], splits: list[str | None]) -> list[str]:
    """The components that have images in several splits."""
    counts = Counter(component for component, _ in set(zip(components, splits, strict=True)))
    return sorted(component for component, count in counts.items() if count > 1)


def _given_splits(location: str, images: list[str]) -> tuple[list[str | None], int]:
    """The split of each image, None for one that is not named, and how many images are named."""
    if storage.file_name(location).lower().endswith(".parquet"):
        known = read_split(location)
        return [known.get(image) for image in images], len(known)
    if not (seen := read_seen(location)):
        raise SourceError(f"--split {redact(location)} is no .parquet, nor a model that says which images it has seen")
    return splits_of(images, seen), len(seen)


def _source_names(sources: Sequence[str]) -> list[str]:
    """The last part of each source's location, or all of it where two end alike."""
    locations = [root_of(source) for source in sources]
    names = [PurePosixPath(redact(location)).name for location in locations]
    return [
        redact(storage.normalize(source)) if names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]


def _collections(sources: Sequence[str], rules: LabelRules) -> list[str]:
    """What each source's groups are called after: its own name, or where that is a label, that of the folder above.

    A photo's cracked tiles lie in `data/Positive`, its sound ones in `data/Negative`: both are of `data`.
    """
    roots = [root_of(source) for source in sources]
    names = {root: PurePosixPath(redact(root)).name for root in roots}
    tops = [_above(root) if rules.label(f"{names[root].removesuffix('.csv')}/an image") else root for root in roots]
    names = {top: PurePosixPath(redact(top)).name or top for top in tops}
    return [redact(top) if list(names.values()).count(names[top]) > 1 else names[top] for top in tops]


def _above(root: str) -> str:
    """The folder that a source lies in."""
    return posixpath.dirname(storage.without_query(root))


def _label(table: pa.Table, source: str, name: str, collection: str, rules: LabelRules, report: Report) -> pa.Table:
    """The plan's rows that have a label, with source, path, label and group, which is `collection`'s."""
    uris = table.column("image_uri").to_pylist()
    root = root_of(source)
    paths, whole = _paths(uris, storage.public(root), name)
    from_paths = [rules.label(path) for path in paths]
    labels: list[int | None] = [None if found is None else found[0] for found in from_paths]
    parts = [name if found is None else found[1] or collection for found in from_paths]
    groups = [rules.group(path, posixpath.basename(_above(root))) for path in whole]
    told = [_GUESS if group is None else "photos that paths name" for group in groups]
    if (cells := _carried(table, LABEL_COLUMN)) is not None:
        labels, parts = [parse_label(cell) for cell in cells], [name] * len(uris)
    if (cells := _carried(table, rules.group_column)) is not None:
        groups = [group if cell is None else str(cell) for cell, group in zip(cells, groups, strict=True)]
        column = f"a manifest's column {rules.group_column}"
        told = [name if cell is None else column for cell, name in zip(cells, told, strict=True)]
    if len(set(parts)) > _MAX_PARTS:
        parts = [name] * len(uris)
    known = [f"{collection}/{group or block}" for group, block in zip(groups, name_blocks(paths), strict=True)]
    labelled = pa.table(
        {
            **{field.name: table.column(field.name) for field in PLAN_SCHEMA},
            "source": pa.array(parts, pa.string()),
            "path": pa.array(paths, pa.string()),
            LABEL_COLUMN: pa.array(labels, pa.int8()),
            "group": pa.array(known, pa.string()),
            "guessed": pa.array([group is None for group in groups]),
        }
    )
    report.grouped.update(name for name, label in zip(told, labels, strict=True) if label is not None)
    report.unlabelled += labelled.column(LABEL_COLUMN).null_count
    return labelled.filter(labelled.column(LABEL_COLUMN).is_valid())


def _carried(table: pa.Table, name: str) -> list[object] | None:
    return table.column(CARRIED + name).to_pylist() if CARRIED + name in table.column_names else None


def _paths(uris: list[str], root: str, name: str) -> tuple[list[str], list[str]]:
    """Each image's path from its source on, the source's own name first, and all of its path where it lies elsewhere.

    An archive counts as a folder. Images that lie elsewhere, as a manifest's do, have the folder that they are all in
    for a source: those above it are nobody's labels.
    """
    split = [uri.rpartition("::") for uri in uris]
    locations = [location for _, _, location in split]
    if all(location == root or location.startswith(f"{root.rstrip('/')}/") for location in locations):
        whole = below = [location.removeprefix(root).strip("/") for location in locations]
    else:
        whole = [(location.partition("://")[2] or location).strip("/") for location in locations]
        above = posixpath.dirname(posixpath.commonpath(list(map(posixpath.dirname, whole))))
        below = [path.removeprefix(above).strip("/") for path in whole]
    members = [member.partition("://")[2] for member, _, _ in split]
    named, wholly = (
        ["/".join(part for part in (name, path, member) if part) for path, member in zip(paths, members, strict=True)]
        for paths in (below, whole)
    )
    return named, wholly


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image's bytes, or None and why; `row` is its place in the table it was read for."""

    row: int
    data: bytes | None
    status: str | None


def read_encoded(table: pa.Table) -> Iterator[list[Encoded]]:
    """The rows of a dataset's table with their bytes, in order and in batches, of which one is in memory at a time."""
    start = 0
    for size in shard_sizes(table):
        row = start
        for block in fetch(table.slice(start, size).select(PLAN_SCHEMA.names)):
            data, statuses = block.column("bytes"), block.column("status").to_pylist()
            for first in range(0, block.num_rows, _BATCH):
                items = data[first : first + _BATCH].to_pylist()
                batch = zip(items, statuses[first : first + _BATCH], strict=True)
                yield [Encoded(row + index, item, status) for index, (item, status) in enumerate(batch)]
                row += len(items)
        start += size


def _read_all(table: pa.Table, report: Report) -> tuple[pa.Table, list[bytes | None]]:
    """The rows that can be read, with their sha256, and the hashes of their pictures."""
    digests: list[str | None] = []
    hashes: list[bytes | None] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for batch in read_encoded(table):
            for status, digest, looks in threads.map(_inspect, batch):
                digests.append(digest)
                hashes.append(looks)
                if digest is None:
                    report.unreadable[status] += 1
    table = table.append_column("sha256", pa.array(digests, pa.string()))
    kept = np.flatnonzero(np.asarray(table.column("sha256").is_valid()))
    if not len(kept):
        raise SourceError(f"none of the {table.num_rows:,} labelled images can be read: {dict(report.unreadable)}")
    return table.take(kept), [hashes[row] for row in kept]


def _inspect(image: Encoded) -> tuple[str, str | None, bytes | None]:
    """(status, sha256, picture hash); no digest where the image cannot be used."""
    if image.data is None:
        return image.status or "failed", None, None
    picture = read_image(image.data)
    if picture.status != "ok":
        return picture.status, None, None
    return "ok", hashlib.sha256(image.data).hexdigest(), picture_hash(picture)


def _drop_duplicates(
    table: pa.Table, hashes: list[bytes | None], report: Report
) -> tuple[pa.Table, list[bytes | None]]:
    """The first of images with the same bytes; none of them where their labels disagree."""
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
    """A column `component`: what a split must not cut, so that near-duplicates never stand on both of its sides.

    A block of names is only a guess at a photo, so a near-duplicate leaves its block for the group of its twin; groups
    that are known to be photos are joined whole.
    """
    groups = table.column("group").to_pylist()
    pairs = near_pairs(hashes)
    report.near_duplicates = len(pairs)
    guessed = table.column("guessed").to_pylist()
    cluster = _components(pairs, len(groups))
    rows = np.unique(pairs)
    leader: dict[int, int] = {}
    for row in sorted(rows.tolist(), key=lambda row: (guessed[row], row)):
        leader.setdefault(cluster[row], row)
    for row in rows.tolist():
        if guessed[row]:
            groups[row] = groups[leader[cluster[row]]]
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    joined = _components(codes[pairs], len(names))
    table = _with_column(table.drop_columns(["guessed"]), "group", pa.array(groups, pa.string()))
    first = names[np.unique(joined, return_index=True)[1]]  # a component is called after its first group
    return table.append_column("component", pa.array(first[joined[codes]], pa.string()))


def _components(pairs: np.ndarray, num: int) -> np.ndarray:
    """(num,) the number of the connected component that each node is in."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(num, num))
    found: np.ndarray = connected_components(links, directed=False)[1]
    return found


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)
