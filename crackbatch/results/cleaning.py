"""Finds and removes the files that interrupted runs left behind.

Published rows are kept, and so is the run.json of a published run. Running and damaged runs are skipped. Files that
crackbatch did not write are not touched. Exactly the listed files are removed, one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from crackbatch.errors import HeldError, OptionError, RunError
from crackbatch.results.parts import concat_identities, read_part
from crackbatch.results.run import WORKING_FOLDERS
from crackbatch.results.states import LEASE, ListedRun, RunFolder, survey
from crackbatch.sources.rows import IDENTITY
from crackbatch.storage import locations, objects
from crackbatch.storage.lease import Holding
from crackbatch.storage.redaction import masked
from crackbatch.storage.retry import giving_up

_THREADS = 16


@dataclass(frozen=True)
class Leftovers:
    """What a run left behind: `files` are locations, `lost_rows` counts scored rows that were never published."""

    run_id: str
    state: str
    files: list[str]
    size_bytes: int
    lost_rows: int


@dataclass(frozen=True)
class Cleaning:
    """What runs left behind, which runs were skipped and why, and whether the files were `removed` or only listed."""

    out: str
    leftovers: list[Leftovers]
    passed_over: dict[str, str]
    removed: bool


def clean(out: locations.Location, yes: bool = False, run_id: str | None = None) -> Cleaning:
    """List the files that interrupted runs (or one run) left in `out`, and remove them if `yes` is set.

    A run that was never published is removed completely. Raises OutputError if there are no runs, OptionError for a
    run that does not exist, RunError if a file cannot be removed.
    """
    out = os.fspath(out)
    found = survey(out)
    if run_id is not None:
        names = [run.run_id for _, run in found]
        found = [item for item in found if item[1].run_id == run_id]
        if not found:
            raise OptionError(f"no run {run_id} in {masked(out)}; runs: {', '.join(names)}")
    passed_over: dict[str, str] = {}
    leftovers = []
    with giving_up(lambda why: RunError(f"cleaning {masked(out)} stopped ({why}); run the same command to continue")):
        for folder, run in found:
            if reason := _why_not(run):
                passed_over[run.run_id] = reason
            elif files := _leftover_files(folder, run):
                left = _describe(folder, run, files)
                if yes and not _remove(folder, files):
                    passed_over[run.run_id] = "has just been continued"
                    continue
                leftovers.append(left)
    return Cleaning(locations.normalize(out), leftovers, passed_over, yes)


def _why_not(run: ListedRun) -> str | None:
    if run.state == "running":
        return f"is running ({run.holder}, since {run.since})"
    return f"is damaged: {run.reason}" if run.state == "damaged" else None


def _leftover_files(folder: RunFolder, run: ListedRun) -> list[str]:
    """Return the unneeded paths in the run's folder; run.json is last, so that a removal can be continued."""
    files = sorted(name for name in folder.files if _is_leftover(name))
    if _is_published(folder, run):
        stale = "summary.json" in folder.files and "failure.json" in folder.files
        return [*files, "failure.json"] if stale else files
    return [*files, *(name for name in ("failure.json", "run.json") if name in folder.files)]


def _is_leftover(name: str) -> bool:
    first, slash, _ = name.partition("/")
    return first in WORKING_FOLDERS if slash else locations.is_temporary(name) or bool(LEASE.fullmatch(name))


def _is_published(folder: RunFolder, run: ListedRun) -> bool:
    return "summary.json" in folder.files or bool(folder.published_files(run.date))


def _describe(folder: RunFolder, run: ListedRun, files: list[str]) -> Leftovers:
    places = [locations.join(folder.location, name) for name in files]
    size_bytes = sum(folder.files[name] for name in files)
    return Leftovers(run.run_id, run.state, places, size_bytes, _count_lost(folder, run))


def _count_lost(folder: RunFolder, run: ListedRun) -> int:
    """Count the rows in the parts that are not in a published file."""
    if "summary.json" in folder.files:  # all rows in the parts were published or replaced
        return 0
    published = folder.published_files(run.date)
    if not published:
        return run.images
    scored = _identities(folder.parts).group_by(IDENTITY).aggregate([])
    lost = scored.join(_identities(published), keys=IDENTITY, join_type="left anti")
    return int(lost.num_rows)


def _identities(places: list[str]) -> pa.Table:
    with ThreadPoolExecutor(_THREADS) as threads:
        tables = list(threads.map(lambda location: read_part(location, IDENTITY), places))
    return concat_identities(table for table in tables if table is not None)


def _remove(folder: RunFolder, files: list[str]) -> bool:
    """Remove the files and, on a local disk, the empty folders; return False if a process uses or changed the run."""
    try:
        with Holding(folder.location, f"run {folder.run_id}"):
            if _without_leases(objects.list_sizes(folder.location)) != _without_leases(folder.files):
                return False
            late = [name for name in files if name == "run.json"]
            places = [locations.join(folder.location, name) for name in files if name not in late]
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(objects.remove_file, places))
            for name in late:
                objects.remove_file(locations.join(folder.location, name))
    except HeldError:
        return False
    if locations.is_local(folder.location):
        for name in (*WORKING_FOLDERS, ""):
            with suppress(OSError):  # not empty, or does not exist
                os.rmdir(os.path.join(folder.location, name))
    return True


def _without_leases(files: Iterable[str]) -> set[str]:
    return {name for name in files if not LEASE.fullmatch(name)}
