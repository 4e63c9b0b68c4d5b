"""The runs in an output location: their states, and what is known about each.

    damaged      a file such as run.json cannot be read; `reason` says which
    running      a process holds its lease
    failed       failure.json exists: the last attempt ended with an error
    published    summary.json exists
    interrupted  no process works on it, and none of the others

An output location can be a bucket that holds other files too. A folder below `runs/` belongs to a run if its run.json
(or summary.json) says so. If both are missing, it belongs to a run if all its files have names that only runs use.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import OutputError
from crackbatch.results.parts import by_frequency, read_part, values_of
from crackbatch.results.run import RUN_ID, Run, check_about
from crackbatch.storage import locations, objects, ranges
from crackbatch.storage.documents import read_json
from crackbatch.storage.lease import working_lease
from crackbatch.storage.redaction import masked, redact
from crackbatch.storage.retry import FIRST_TRIES, giving_up, is_storage_error

LEASE = re.compile(r"lease-\d+\.json")
_THREADS = 8
_MADE = re.compile(
    r"plan/\d{5}\.arrow|parts/[0-9a-f]{24}\.(part|maps)|scratch/[0-9a-f]{16}\.(images|copy)|publish/[^/]+-\d{5}\.parquet\.(whole|maps)"
    rf"|{LEASE.pattern}"
)
_TEMPORARY = re.compile(r"(?P<folder>(.+/)?)\.(?P<name>[^/]+)\.\w{8}\.tmp")
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class ListedRun:
    """What is known about a run.

    `images` counts the rows of a published run, or the rows in the parts of another run; `statuses` counts the same
    rows by status, `labels` those of a published run by label. `published` counts the rows that readers see. `seconds`
    is the duration of the call that published, or the time that a running process has worked so far. `since` and
    `holder` are set while a process works on the run.
    `reason` says why a run failed, or what is damaged. Times are in ISO 8601.
    """

    run_id: str
    date: str
    state: str
    images: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    published: int = 0
    model_id: str | None = None
    threshold: float | None = None
    created_at: str | None = None
    seconds: float | None = None
    since: str | None = None
    holder: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder as listed: `files` maps each path below it to its size in bytes, including temporary files."""

    out: str
    run_id: str
    files: dict[str, int]

    @property
    def location(self) -> str:
        return locations.join(self.out, "runs", self.run_id)

    @property
    def parts(self) -> list[str]:
        names = (name for name in self.files if name.startswith("parts/") and name.endswith(".part"))
        return [locations.join(self.location, name) for name in names]

    def published_files(self, date: str) -> list[str]:
        """Return its files below `predictions/`; none if the date is not known."""
        return Run(self.out, self.run_id, date).published_files() if date else []


def list_runs(out: locations.Location) -> list[ListedRun]:
    """Return the runs in `out`, newest last; raise OutputError if there are none."""
    return [run for _, run in survey(os.fspath(out))]


def published_runs(out: locations.Location) -> list[ListedRun]:
    """Return the published runs in `out`, newest last; raise OutputError if there are no runs at all."""
    return [run for run in list_runs(out) if run.state == "published"]


def survey(out: str) -> list[tuple[RunFolder, ListedRun]]:
    """Return every run in `out` with its folder, newest last; raise OutputError if there are none."""
    if not out:
        raise OutputError("OUT is missing: give the folder or URL that was the --out of score")
    folders = _list_folders(locations.normalize(out))
    with ThreadPoolExecutor(_THREADS) as threads:
        found = [(folder, run) for folder, run in zip(folders, threads.map(_look, folders), strict=True) if run]
    if not found:
        raise OutputError(f"no runs in {masked(out)}; run `crackbatch score` with this --out first")
    return sorted(found, key=lambda item: (item[1].created_at or "", item[1].run_id))


def _list_folders(out: str) -> list[RunFolder]:
    """List the folders below `runs/` that have the name of a run, with all their files."""
    with giving_up(lambda why: OutputError(f"cannot list the runs in {masked(out)}: {why}")):
        listed = objects.list_sizes(locations.join(out, "runs"), FIRST_TRIES)
    folders: dict[str, dict[str, int]] = {}
    for name, size_bytes in listed.items():
        run_id, slash, below = name.partition("/")
        if slash and below and RUN_ID.fullmatch(run_id):
            folders.setdefault(run_id, {})[below] = size_bytes
    return [RunFolder(out, run_id, files) for run_id, files in folders.items()]


def _look(folder: RunFolder) -> ListedRun | None:
    """Return what is known about the run in a folder; None if the folder does not belong to a run."""
    known: dict[str, Any] = {}
    try:
        asked = _read_object(folder, "run.json")
        if asked is not None:
            if not {"run_id", "fingerprint"} <= asked.keys():
                return None
            known = _describe(folder, "run.json", asked)
        summary = _read_object(folder, "summary.json")
        if asked is None:
            if not _is_ours(folder, summary):
                return None
            known = _describe(folder, "summary.json", summary or {})
        return _judge(folder, asked, summary, known)
    except Exception as error:  # each cloud library has its own exceptions
        if not (isinstance(error, (OutputError, ValueError)) or is_storage_error(error)):
            raise
        return ListedRun(**{"run_id": folder.run_id, "date": "", **known}, state="damaged", reason=_say(error))


def _is_ours(folder: RunFolder, summary: dict[str, Any] | None) -> bool:
    """Whether a folder without run.json belongs to a run."""
    if summary is not None:
        return {"run_id", "statuses"} <= summary.keys()
    finished = [_TEMPORARY.sub(r"\g<folder>\g<name>", name) for name in folder.files]
    ours = [name for name in finished if _MADE.fullmatch(name)]
    return bool(ours) and set(finished) <= {*ours, "run.json", "failure.json"}


def _describe(folder: RunFolder, file: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return the main values of run.json or summary.json; raise OutputError if it was copied from another run."""
    if not about:
        return {"date": ""}
    check_about(about, file, folder.run_id)
    return {"date": about["date"], **{name: about.get(name) for name in ("model_id", "threshold", "created_at")}}


def _judge(
    folder: RunFolder, asked: dict[str, Any] | None, summary: dict[str, Any] | None, known: dict[str, Any]
) -> ListedRun:
    """Return a run with its state and its numbers of rows."""
    known = {"run_id": folder.run_id, **known}
    if summary is not None:
        images = _get(summary, "summary.json", "images", int)
        known |= {"images": images, "statuses": _get(summary, "summary.json", "statuses", dict), "published": images}
        if "labels" in summary:  # older versions did not count them
            known["labels"] = _get(summary, "summary.json", "labels", dict)
    else:
        known |= _count_rows(folder, known["date"])
    if (held := working_lease(folder.location)) is not None:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(held.since)).total_seconds()
        return ListedRun(**known, state="running", since=held.since, holder=held.holder, seconds=round(seconds, 3))
    failure = _read_object(folder, "failure.json")
    if failure is not None:
        known["reason"] = _get(failure, "failure.json", "error", str)
        return ListedRun(**known, state="failed")
    if summary is not None:
        seconds = _get(summary, "summary.json", "seconds", float)
        return ListedRun(**known, state="published", seconds=seconds, exit_code=summary.get("exit_code"))
    return ListedRun(**known, state="interrupted")


def _count_rows(folder: RunFolder, date: str) -> dict[str, Any]:
    """Count the rows in the parts of a run, also by status, and the rows that an earlier attempt published."""
    statuses: Counter[str] = Counter()
    with ThreadPoolExecutor(_THREADS) as threads:
        published = sum(threads.map(_num_rows, folder.published_files(date)))
        counts = list(threads.map(_count_part, folder.parts))
    for count in counts:
        statuses.update(count or {})
    unreadable = counts.count(None)
    return {
        "images": statuses.total(),
        "statuses": by_frequency(statuses),
        "published": published,
        "reason": f"{unreadable:,} parts cannot be read and will be scored again" if unreadable else None,
    }


def _count_part(location: str) -> dict[str, int] | None:
    """Count the rows of a part by status: empty if it was just published and removed, None if it cannot be read."""
    try:
        table = read_part(location, ["status"])
    except FileNotFoundError:
        return {}
    return None if table is None else values_of(table.column(0))


def _num_rows(location: str) -> int:
    try:
        with ranges.open_file(location) as file:
            return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise OutputError(f"{location} cannot be read ({error})") from None


def _read_object(folder: RunFolder, name: str) -> dict[str, Any] | None:
    """Read a JSON file of the run; None if it does not exist (any more)."""
    return read_json(locations.join(folder.location, name)) if name in folder.files else None


def _get(value: dict[str, Any], file: str, name: str, kind: type[_Kind]) -> _Kind:
    """Return a value of a JSON file; raise OutputError if it does not have the expected type."""
    found = value.get(name)
    if kind is float and isinstance(found, int):
        found = float(found)
    if not isinstance(found, kind):
        raise OutputError(f"{file} has {found!r} as {name}")
    return found


def _say(error: Exception) -> str:
    return redact(str(error) or repr(error))
