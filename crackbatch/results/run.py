"""A run and its files in OUT: parts while it works, one published table at the end, and the files that describe it.

    OUT/predictions/date=D/<run_id>-NNNNN.parquet   published rows only
    OUT/runs/<run_id>/run.json                      what was asked, written first
    OUT/runs/<run_id>/plan/ parts/ scratch/       while it works; removed when it is published
    OUT/runs/<run_id>/failure.json                  why it stopped, until it is continued
    OUT/runs/<run_id>/summary.json                  written last

Each file is written completely or not at all, and every step can be repeated. A run that was killed at any point
continues: it plans again and subtracts the images that its parts and its published files already hold.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crackbatch.errors import OptionError, OutputError
from crackbatch.storage import locations, objects
from crackbatch.storage.documents import read_json, write_json
from crackbatch.storage.redaction import masked

# The folders of OUT that readers see, and that a source never contains.
PREDICTIONS, MAPS = "predictions", "maps"
# What a run needs only while it works.
WORKING_FOLDERS = ("plan", "parts", "scratch", "publish")
# The names that a run can have.
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Run:
    """One scoring run in an output location: where its files are, and its steps from beginning to end."""

    out: str
    run_id: str
    date: str

    @property
    def folder(self) -> str:
        return locations.join(self.out, "runs", self.run_id)

    @property
    def plan_folder(self) -> str:
        return locations.join(self.folder, "plan")

    @property
    def parts_folder(self) -> str:
        return locations.join(self.folder, "parts")

    @property
    def scratch_folder(self) -> str:
        return locations.join(self.folder, "scratch")

    @property
    def is_begun(self) -> bool:
        """Whether run.json exists; raises OutputError if it is damaged."""
        return self._read("run.json") is not None

    @property
    def is_finished(self) -> bool:
        """Whether summary.json exists; raises OutputError if it is damaged."""
        return self._read("summary.json") is not None

    def part_files(self) -> list[str]:
        """Return the finished parts, sorted by name."""
        return objects.list_files(self.parts_folder, ".part")

    def published_files(self, folder: str = PREDICTIONS) -> list[str]:
        """Return the run's files below a folder of OUT, sorted by number."""
        dated = locations.join(self.out, folder, f"date={self.date}")
        pattern = re.compile(re.escape(self.run_id) + r"-\d{5}\.parquet")
        return [file for file in objects.list_files(dated) if pattern.fullmatch(file.rsplit("/", 1)[-1])]

    def published_file(self, number: int, folder: str = PREDICTIONS) -> str:
        """Return the location of a file of the run below a folder of OUT."""
        return locations.join(self.out, folder, f"date={self.date}", f"{self.run_id}-{number:05d}.parquet")

    def next_number(self, folder: str = PREDICTIONS) -> int:
        """Return the number of the next file to publish."""
        files = self.published_files(folder)
        return 1 + int(files[-1][-len("00000.parquet") : -len(".parquet")]) if files else 0

    def begin(self, description: dict[str, Any]) -> None:
        """Mark the run as working: write run.json if it does not exist, remove an earlier summary and failure."""
        if not self.is_begun:
            write_json(self._file("run.json"), {"run_id": self.run_id, "date": self.date, **description})
        for name in ("summary.json", "failure.json"):
            objects.remove(self._file(name))

    def fail(self, error: str) -> None:
        """Record why the run stopped, if OUT can still be written to."""
        with suppress(Exception):  # OUT itself may have failed; the caller reports the error anyway
            if self.is_begun:
                moment = datetime.now(UTC).isoformat(timespec="seconds")
                write_json(self._file("failure.json"), {"error": error, "at": moment})

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, then remove the working files."""
        write_json(self._file("summary.json"), summary)
        self.tidy()

    def tidy(self) -> None:
        """Remove the working files and the record of an earlier failure."""
        for name in (*WORKING_FOLDERS, "failure.json"):
            objects.remove(self._file(name))

    def _file(self, name: str) -> str:
        return locations.join(self.folder, name)

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_json(self._file(name))


def choose_run(out: str, fingerprint: str, date: str | None, run_id: str | None) -> Run:
    """Return the run of a request: the named one, an unfinished one with the same fingerprint, or a new one.

    Raises OptionError if the date or the name is invalid, or if the name belongs to a run with another date, other
    sources, another model or other options.
    """
    date = check_names(date, run_id)
    if run_id is None and date is None and (unfinished := _unfinished(out, fingerprint)):
        return unfinished
    today = datetime.now(UTC).date().isoformat()
    run_id = run_id or f"{date or today}-{fingerprint[:8]}"
    file = locations.join(out, "runs", run_id, "run.json")
    known = read_json(file)
    if known is not None:
        check_about(known, file, run_id)
        if known.get("fingerprint") != fingerprint:
            raise OptionError(
                f"run {run_id} in {masked(out)} has other sources, another model or other options;"
                " give another --run-id"
            )
        if date is not None and known["date"] != date:
            raise OptionError(f"run {run_id} has the date {known['date']}, not {date}; give another --run-id")
        date = known["date"]
    return Run(out, run_id, date or today)


def check_about(about: dict[str, Any], file: str, run_id: str) -> None:
    """Raise OutputError unless run.json (or summary.json) has the name of its run and a date: both name other files."""
    shown, date = masked(file), about.get("date")
    if about.get("run_id") != run_id:
        raise OutputError(f"{shown} belongs to run {about.get('run_id')!r}; remove it and run again")
    try:
        is_date = isinstance(date, str) and check_names(date, None) == date
    except OptionError:
        is_date = False
    if not is_date:
        raise OutputError(f"{shown} has {date!r} instead of a date such as 2026-11-20; remove it and run again")


def check_names(date: str | None, run_id: str | None) -> str | None:
    """Return the date as it is written in names; raise OptionError for an invalid date or run name."""
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise OptionError(
            f"--run-id must be 1 to 128 letters, digits, '.', '_' and '-', the first a letter or digit, got {run_id!r}"
        )
    try:
        return None if date is None else datetime.strptime(str(date), "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise OptionError(f"--date must be written as 2026-11-20, got {date!r}") from None


def _unfinished(out: str, fingerprint: str) -> Run | None:
    """Return the newest run with this fingerprint and without a summary, if there is one."""
    runs = locations.join(out, "runs")
    files = objects.list_files(runs)
    finished = {file.rsplit("/", 2)[-2] for file in files if file.endswith("/summary.json")}
    candidates = []
    for file in files:
        run_id, name = file.rsplit("/", 2)[-2:]
        if name == "run.json" and run_id not in finished:
            known = read_json(file)
            if known is not None and known.get("fingerprint") == fingerprint:
                check_about(known, file, run_id)
                candidates.append((str(known.get("created_at")), Run(out, run_id, known["date"])))
    return max(candidates, key=lambda item: item[0])[1] if candidates else None
