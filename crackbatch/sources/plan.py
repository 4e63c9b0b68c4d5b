"""The plan of a run: a table with one row for each image that says where its bytes are. No image is read for it.

Sources → objects (`listing.py`) → members of archives (`zips.py`, `tars.py`, `parquet.py`) → rows (`rows.py`) → this
table → shards (`shards.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackbatch.archives.kinds import VOLUME, kind_of, why_unopened
from crackbatch.archives.members import Listing, Object, is_hidden, member_path
from crackbatch.errors import RunError, SourceError
from crackbatch.images.formats import describe_extensions
from crackbatch.sources.listing import list_source, pass_over_name, root_of
from crackbatch.sources.manifest import Manifest, plan_manifest
from crackbatch.sources.prefixes import ANYWHERE, Prefixes
from crackbatch.sources.rows import (
    CARRIED,
    IDENTITY,
    SCHEMA,
    Rows,
    add_loose,
    identity_keys,
    in_order,
    list_archive,
    with_large_texts,
)
from crackbatch.storage import locations
from crackbatch.storage.redaction import masked

_LISTING_THREADS = 8
_SHOWN_REASONS = 5


class Tally:
    """Counts images while they are found. `wait` returns when there are `enough` of them, or after `close`."""

    def __init__(self, enough: int) -> None:
        self.num = 0
        self._enough = enough
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    @property
    def is_reached(self) -> bool:
        return self.num >= self._enough

    def count(self) -> None:
        with self._lock:
            self.num += 1
            if self.num == self._enough:
                self._is_over.set()

    def close(self) -> None:
        self._is_over.set()

    def wait(self) -> None:
        self._is_over.wait()


@dataclass
class Plan:
    """The images of a run, what was skipped, and what is wrong with their archives."""

    table: pa.Table
    listing: Listing = field(default_factory=Listing)
    num_archives: int = 0

    @property
    def size_bytes(self) -> int:
        """The total encoded size of all images with a known size."""
        return int(pc.sum(self.table.column("size_bytes")).as_py() or 0)

    @property
    def carried_fields(self) -> list[pa.Field]:
        """The columns of manifests, under their own names."""
        fields = (field for field in self.table.schema if field.name.startswith(CARRIED))
        return [field.with_name(field.name.removeprefix(CARRIED)) for field in fields]


def make_plan(
    sources: Iterable[str],
    extensions: frozenset[str],
    skip: Iterable[str] = (),
    scratch: str | None = None,
    limit: int | None = None,
    tally: Tally | None = None,
    apart: Sequence[str] = (),
    prefixes: Prefixes = ANYWHERE,
) -> Plan:
    """List every image in the sources once, ordered by container and offset.

    Images of compressed tars and of `memory://` are copied below `scratch`; without it (in a dry run) they are only
    listed. `tally` counts the images meanwhile. Manifest lines with the same image become one row, unless they differ
    in the columns `apart`. Images that are not below `prefixes` are `unreadable`. Raises SourceError if a source does
    not exist or is not below them, or if no source has an image.
    """
    planner = _Planner(extensions, scratch, tally or Tally(1), prefixes)
    sources = list(sources)
    for source in sources:
        if why := prefixes.refusal(root_of(source)):
            raise SourceError(f"{masked(source)}: {why}")
    try:
        for source in sources:
            for found in list_source(source, extensions, planner.listing, skip, prefixes):
                planner.add(found)
            planner.end_source(is_ordered=locations.is_local(source))
        plan = planner.finish(apart)
    finally:
        planner.stop()
    if limit is not None:
        plan.table = plan.table.slice(0, limit)
    if not plan.table.num_rows:
        raise SourceError(_nothing_found(sources, plan.listing, extensions))
    return plan


def _nothing_found(sources: list[str], listing: Listing, extensions: frozenset[str]) -> str:
    where = ", ".join(masked(source) for source in sources)
    if listing.problems:
        return f"no images in {where}: {listing.problems[0]}"
    found = ", ".join(f"{count:,} {reason}" for reason, count in listing.passed_over.most_common(_SHOWN_REASONS))
    what = f"found only {found}" if found else "found no files"
    return f"no images in {where}: {what}; images end in {describe_extensions(extensions)} (see --extensions)"


class _Planner:
    """Collects the rows of the plan from objects, archives and manifests; threads list the archives."""

    def __init__(
        self,
        extensions: frozenset[str],
        scratch: str | None,
        tally: Tally,
        prefixes: Prefixes = ANYWHERE,
    ) -> None:
        self.listing = Listing()
        self._tally = tally
        self._extensions = extensions
        self._scratch = scratch
        self._prefixes = prefixes
        self._loose = Rows()
        self._tables: list[pa.Table] = []
        self._archives: list[tuple[str, pa.Table | Future[tuple[pa.Table, Listing] | None]]] = []
        self._done: list[pa.Table | Future[tuple[pa.Table, Listing] | None]] = []
        self._num_archives = 0
        self._is_stopped = False
        self._threads = ThreadPoolExecutor(_LISTING_THREADS, thread_name_prefix="listing")

    def add(self, found: Object | Manifest) -> None:
        if isinstance(found, Manifest):
            planned = plan_manifest(found, self.listing, self._scratch, self._prefixes)
            self._archives.append((found.location, planned))
            return
        found = self._prefixes.check(found)
        if found.kind is None:
            add_loose(self._loose, found, self._scratch)
            self._tally.count()
        elif found.status is not None:
            self.listing.problems.append(f"{masked(found.location)}: {found.error}")
        else:
            listed = self._threads.submit(list_archive, found, self._wanted, self._scratch)
            self._archives.append((found.location, listed))

    def end_source(self, is_ordered: bool) -> None:
        """Sort the rows of one source by name, so that the same sources give the same plan."""
        loose, archives = self._loose.table(), self._archives
        if not is_ordered:
            loose = _sort(loose)
            archives = sorted(archives, key=lambda item: item[0])
        self._tables.append(loose)
        self._done.extend(done for _, done in archives)
        self._loose, self._archives = Rows(), []

    def finish(self, apart: Sequence[str]) -> Plan:
        tables = self._tables or [SCHEMA.empty_table()]
        for done in self._done:
            if isinstance(done, Future):
                if (result := done.result()) is None:
                    self.listing.pass_over(".parquet files without an image column")
                    continue
                done, listing = result
                self.listing.problems.extend(listing.problems)
                self.listing.notes.extend(listing.notes)
                for reason, count in listing.passed_over.items():
                    self.listing.pass_over(reason, count)
                self.listing.unopened.update(listing.unopened)
                self._num_archives += 1
            tables.append(done)
        # If an image is listed twice, its first row is kept. This should be the row with the columns of a manifest.
        tables = sorted(tables, key=lambda table: len(table.column_names) == len(SCHEMA))
        try:
            table = pa.concat_tables(tables, promote_options="default")
            self.listing.problems += _left_unopened(self.listing)
        except pa.ArrowException as error:
            raise SourceError(f"two manifests give one column different types ({error}); use one type") from None
        return Plan(_drop_repeated(table, self.listing, apart), self.listing, self._num_archives)

    def stop(self) -> None:
        """Start no other archive, stop the current ones at their next member, and wait for them."""
        self._is_stopped = True
        self._threads.shutdown(cancel_futures=True)

    def _wanted(self, name: str, listing: Listing) -> bool:
        if self._is_stopped:
            raise RunError("the listing of sources was stopped")  # not shown: the error that stopped it is raised
        if is_hidden(member_path(name)):
            listing.pass_over("hidden files")
        elif kind_of(name) or why_unopened(name):
            listing.leave_unopened(name, "")
        elif os.path.splitext(name)[1].lower() in self._extensions:
            self._tally.count()
            return True
        else:
            pass_over_name(name, listing)
        return False


def _left_unopened(listing: Listing) -> Iterable[str]:
    """Return a problem for each archive that was not opened, one for all volumes of a split archive."""
    told = [problem.partition(f": {VOLUME}")[0] for problem in listing.problems if f": {VOLUME}" in problem]
    for (archive, why), num in listing.unopened.items():
        shown = masked(archive)
        if f"{shown}.zip" not in told:  # the last volume of a zip has the name of the whole
            yield f"{shown}: {why}" + (f" ({num:,} volumes)" if num > 1 else "")


def _sort(table: pa.Table) -> pa.Table:
    order = pc.sort_indices(table, sort_keys=[("image_uri", "ascending"), ("container", "ascending")])
    if np.array_equal(order, np.arange(len(order))):
        return table
    return pa.concat_tables(in_order(table, order))


def _drop_repeated(table: pa.Table, listing: Listing, apart: Sequence[str] = ()) -> pa.Table:
    """Keep the first row of each place, as sources can overlap; places with the same URI get different versions."""
    keys = [*IDENTITY, "container", "start", *(name for name in apart if name in table.column_names)]
    wide = with_large_texts(table.select(keys))
    if table.num_rows == len(pc.unique(wide.column("image_uri"))):
        return table
    numbered = wide.append_column("row", pa.array(np.arange(table.num_rows)))
    place = numbered.group_by(keys, use_threads=False)
    first = place.aggregate([("row", "min")]).column("row_min").combine_chunks().sort()
    if len(first) < table.num_rows:
        listing.pass_over("images listed twice", table.num_rows - len(first))
        table = pa.concat_tables(in_order(table, first))
    counted = (
        with_large_texts(table.select(IDENTITY)).group_by(IDENTITY, use_threads=False).aggregate([([], "count_all")])
    )
    if len(counted) == table.num_rows:
        return table
    versions = table.column("version").to_pylist()
    seen: dict[tuple[str, str], int] = {}
    for row, identity in enumerate(zip(table.column("image_uri").to_pylist(), versions, strict=True)):
        number = seen[identity] = seen.get(identity, 0) + 1
        if number > 1:
            versions[row] = f"{identity[1]}#{number}"
    return table.set_column(table.column_names.index("version"), "version", pa.array(versions, pa.string()))


def local_roots(table: pa.Table, sources: Iterable[str]) -> list[str]:
    """Return the local folders and files that hold the images of a plan: sources, and one folder for all other images.

    Manifests and compressed archives are left out, because they have been read already.
    """
    waiting = table.filter(table.column("status").is_null()).column("container")
    paths = pc.unique(waiting.filter(pc.invert(pc.match_substring(waiting, "://"))))
    found = []
    for root in (root_of(source) for source in sources if locations.is_local(source)):
        below = pc.starts_with(paths, os.fsencode(locations.join(root, "")))
        is_there = pc.or_(below, pc.equal(paths, os.fsencode(root)))
        found += [root] if pc.any(is_there).as_py() else []
        paths = paths.filter(pc.invert(is_there))
    if len(paths):
        bounds = pc.min_max(paths).as_py()  # a common beginning of the first and the last path is common to all
        found.append(os.path.commonpath([os.path.dirname(os.fsdecode(path)) for path in bounds.values()]))
    return found


def subtract(table: pa.Table, done: pa.Table) -> pa.Table:
    """Return the rows of a plan with an (image_uri, version) that is not in `done`, in their order."""
    return table.filter(pc.invert(_is_in(table, done))) if done.num_rows else table


def intersect(table: pa.Table, done: pa.Table) -> pa.Table:
    """Return the rows of a plan with an (image_uri, version) that is in `done`, in their order."""
    return table.filter(_is_in(table, done))


def _is_in(table: pa.Table, done: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(identity_keys(table), identity_keys(done).combine_chunks())
