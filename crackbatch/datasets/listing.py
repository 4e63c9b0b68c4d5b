"""Lists labelled images: the source, label and group of each, from its path or from a manifest.

This file reads no image: `datasets/dataset.py` reads the images, removes duplicates and splits them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from crackbatch.archives.members import member_path, split_uri
from crackbatch.datasets.labels import LabelRules, name_blocks, parse_label
from crackbatch.datasets.report import GUESS, Report
from crackbatch.errors import SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.progress import counted
from crackbatch.sources.listing import root_of
from crackbatch.sources.plan import make_plan
from crackbatch.sources.rows import CARRIED
from crackbatch.sources.rows import SCHEMA as PLAN_SCHEMA
from crackbatch.storage import locations
from crackbatch.storage.redaction import masked

LABEL_COLUMN = "label"
_OTHER_LABEL_COLUMN = "choice"  # of Label Studio
# More sub-folders than this are dates or structures, not kinds of images that need metrics of their own.
_MAX_PARTS = 12
_EMPTY = ("None", "nan", "")  # how empty cells of CSV and Parquet files read


@dataclass(frozen=True)
class Listed:
    """Labelled images that are listed but not read yet."""

    table: pa.Table
    report: Report


def list_labelled(
    sources: Sequence[str],
    rules: LabelRules | None = None,
    scratch: str | None = None,
) -> Listed:
    """Return the images that have a label, without reading them. Raises SourceError if there are none."""
    rules = rules or LabelRules()
    found = _list(sources, rules, scratch)
    if not found.table.num_rows and not rules.positive and not rules.negative:
        numbered = LabelRules(("1",), ("0",), rules.group_pattern, rules.group_column)
        by_number = _list(sources, numbered, scratch)
        if not by_number.report.unlabelled and by_number.table.num_rows:  # all images are in folders 0 and 1
            return by_number
    if not found.table.num_rows:
        raise SourceError(
            f"no labelled images in {', '.join(map(masked, sources))}: {counted(found.report.unlabelled, 'image')}"
            f"{found.report.unknown_words()}, none in a folder such as Positive or Negative, crack or no_crack; name"
            " your folders with --positive and --negative, or give a manifest with a column label"
        )
    return found


def _list(sources: Sequence[str], rules: LabelRules, scratch: str | None) -> Listed:
    report, tables = Report(), []
    for source, name, collection in zip(sources, _source_names(sources), _collections(sources, rules), strict=True):
        # An image that is listed with both labels keeps both rows, so that it is reported.
        plan = make_plan(
            [source], EXTENSIONS, scratch=scratch, apart=[CARRIED + LABEL_COLUMN, CARRIED + _OTHER_LABEL_COLUMN]
        )
        report.problems.extend(plan.listing.problems)
        report.listed_twice += plan.listing.passed_over["images listed twice"]
        tables.append(_label(plan.table, source, name, collection, rules, report))
    return Listed(pa.concat_tables(tables), report)


def _source_names(sources: Sequence[str]) -> list[str]:
    """Return the last part of each source's location, or the whole location if two last parts are the same."""
    roots = [root_of(source) for source in sources]
    names = [PurePosixPath(masked(location)).name for location in roots]
    return [
        masked(locations.normalize(source)) if names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]


def _collections(sources: Sequence[str], rules: LabelRules) -> list[str]:
    """Return the first part of the names of each source's groups.

    It is the source's own name, or the name of the folder above if its own name is a label: a photo's cracked tiles are
    in `data/Positive` and its sound tiles in `data/Negative`, and both belong to `data`.
    """
    roots = [root_of(source) for source in sources]
    names = {root: PurePosixPath(masked(root)).name for root in roots}
    tops = [_above(root) if rules.label(f"{names[root].removesuffix('.csv')}/an image") else root for root in roots]
    names = {top: PurePosixPath(masked(top)).name or top for top in tops}
    return [masked(top) if list(names.values()).count(names[top]) > 1 else names[top] for top in tops]


def _above(root: str) -> str:
    """Return the folder that contains a source."""
    return posixpath.dirname(locations.without_query(root))


def _label(table: pa.Table, source: str, name: str, collection: str, rules: LabelRules, report: Report) -> pa.Table:
    """Return the plan's rows that have a label, with source, path, label and group; groups begin with `collection`."""
    uris = table.column("image_uri").to_pylist()
    root = root_of(source)
    paths, whole = _paths(uris, locations.public(root), name)
    from_paths = [rules.label(path) for path in paths]
    labels: list[int | None] = [None if found is None else found[0] for found in from_paths]
    parts = [name if found is None else found[1] or collection for found in from_paths]
    groups = [rules.group(path, posixpath.basename(_above(root))) for path in whole]
    told = [GUESS if group is None else "photos named in paths" for group in groups]
    cells = _carried(table, LABEL_COLUMN)
    if cells is None:
        cells = _carried(table, _OTHER_LABEL_COLUMN)
    if cells is not None:
        labels, parts = [parse_label(cell) for cell in cells], [name] * len(uris)
        told_nothing = (str(cell).strip() for cell, label in zip(cells, labels, strict=True) if label is None)
        report.not_understood.update(word for word in told_nothing if word not in _EMPTY)
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
    """Return each image's path from its source on, and the same with its whole path if it is outside the source.

    Both begin with the source's name. An archive counts as a folder. If images are outside the source (as a manifest's
    may be), the first path continues with the folder that contains them all, because folders above it are not labels.
    """
    split = [split_uri(uri) for uri in uris]
    places = [inner[2] if inner else uri for inner, uri in zip(split, uris, strict=True)]
    if all(location == root or location.startswith(f"{root.rstrip('/')}/") for location in places):
        whole = below = [location.removeprefix(root).strip("/") for location in places]
    else:
        whole = [(location.partition("://")[2] or location).strip("/") for location in places]
        above = posixpath.dirname(posixpath.commonpath(list(map(posixpath.dirname, whole))))
        below = [path.removeprefix(above).strip("/") for path in whole]
    members = [member_path(inner[1]) if inner else "" for inner in split]
    named, wholly = (
        ["/".join(part for part in (name, path, member) if part) for path, member in zip(paths, members, strict=True)]
        for paths in (below, whole)
    )
    return named, wholly
