"""Scores the images of a night, compares it with the nights before, and catches up with nights that were missed.

OUT/nights/<date>.json      counts and distributions of a night, and what is not as in the nights before
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from crackbatch.capacity import DEFAULT_MAX_WAIT
from crackbatch.errors import HeldError, OptionError, OutputError, SourceError
from crackbatch.models.bundle import DEFAULT_MODEL
from crackbatch.results.predictions import read_predictions
from crackbatch.results.summary import RunSummary
from crackbatch.scoring.drift import NUM_NIGHTS, Drift, Night, compare, histograms_of
from crackbatch.scoring.score import score
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import read_json, write_json
from crackbatch.storage.redaction import masked

NIGHTS = "nights"
_DRIFTED = 4
_MOST_NIGHTS = 366
_DATE = re.compile(r"\{date(?::[^{}]*)?\}")
_COLUMNS = ["image_uri", "version", "status", "label", "crack_probability", "width", "height", "size_bytes"]


@dataclass(frozen=True)
class Nights:
    """What was done: the nights that were scored or found done, and those that another process works on.

    `exit_code` is 3 if too many images of a night failed, 4 if a night is not as those before, otherwise 0.
    """

    nights: list[Night]
    running: list[str]
    exit_code: int


def nightly(
    inbox: locations.Location | Sequence[locations.Location],
    out: locations.Location,
    *,
    date: str,
    since: str | None = None,
    model: locations.Location = DEFAULT_MODEL,
    threshold: float | None = None,
    operating_point: str | None = None,
    max_error_rate: float = 0.05,
    max_errors: int | None = None,
    extensions: Sequence[str] = (),
    address: str | None = None,
    engine: str = "auto",
    maps: bool = False,
    exit_zero_when_published: bool = False,
    gpus: int | None = None,
    max_wait: float = DEFAULT_MAX_WAIT,
) -> Nights:
    """Score what is new in the inbox of a night, and write `OUT/nights/<date>.json`.

    `{date}` in `inbox` becomes the date; `{date:%Y/%m/%d}` writes it in another way. `date` is YYYY-MM-DD, or
    `yesterday` (UTC). With `since`, nights from then on that were missed are scored first. A night that is done is not
    done again; one that another process works on is left alone. `gpus` and `max_wait` are as for `score`. Raises
    RequestError and RunError.
    """
    last, first = _parse(date), _parse(since or date)
    if first > last:
        raise OptionError(f"--since {since} is after --date {last}")
    if (last - first).days >= _MOST_NIGHTS:
        raise OptionError(f"--since {since} is {(last - first).days:,} nights before --date; at most {_MOST_NIGHTS:,}")
    given = [inbox] if isinstance(inbox, (str, os.PathLike)) else list(inbox)
    inboxes = [os.fspath(one) for one in given]
    options = {
        "model": model, "threshold": threshold, "operating_point": operating_point, "max_error_rate": max_error_rate,
        "max_errors": max_errors, "extensions": extensions, "address": address, "engine": engine, "maps": maps,
        "gpus": gpus, "max_wait": max_wait,
    }  # fmt: skip
    location = atomic.check_output(os.fspath(out))
    done, running = list[Night](), list[str]()
    for number in range((last - first).days + 1):
        day = first + timedelta(number)
        known = read_night(location, day.isoformat())
        if known is not None and day < last:
            continue
        try:
            done.append(_score_night(inboxes, location, day, known, options))
        except HeldError:
            running.append(day.isoformat())
    codes = {night.exit_code for night in done}
    code = 0 if exit_zero_when_published else 3 if 3 in codes else max(codes, default=0)
    return Nights(done, running, code)


def read_night(out: str, day: str) -> Night | None:
    """Return what is known about a night; None if it was not scored."""
    known = read_json(_file(out, day))
    if known is None:
        return None
    try:
        return Night(**{**known, "drift": [Drift(**one) for one in known["drift"]]})
    except (KeyError, TypeError) as error:
        raise OutputError(f"{masked(_file(out, day))} is damaged ({error}); remove it and run again") from None


def _score_night(inboxes: Sequence[str], out: str, day: date, known: Night | None, options: dict[str, Any]) -> Night:
    before = _nights_before(out, day.isoformat())
    run_id = f"night-{day.isoformat()}"
    try:
        summary = score(
            [_DATE.sub(lambda found: found[0].format(date=day), inbox) for inbox in inboxes],
            out, date=day.isoformat(), run_id=run_id, new_only=True, **options,
        )  # fmt: skip
    except SourceError as error:
        if not before or not any(_DATE.search(inbox) for inbox in inboxes):
            raise
        night = Night(day.isoformat(), run_id, 0, 0, 0, notes=[f"nothing was scored: {error}"])
        return _write(out, night, before)
    if known is not None and not summary.added and known.images == summary.images:
        return known
    return _write(out, _night_of(day.isoformat(), out, summary), before, summary.exit_code)


def _night_of(day: str, out: str, summary: RunSummary) -> Night:
    histograms: dict[str, list[int]] = {}
    if summary.statuses.get("ok"):
        rows = read_predictions(out, run_id=summary.run_id, columns=_COLUMNS)
        histograms = histograms_of(rows, seed=day)
    return Night(
        date=day,
        run_id=summary.run_id,
        images=summary.images,
        scored=summary.statuses.get("ok", 0),
        cracks=summary.labels.get("crack", 0),
        statuses=summary.statuses,
        histograms=histograms,
        notes=[*summary.problems, *summary.notes],
    )


def _write(out: str, night: Night, before: list[Night], exit_code: int = 0) -> Night:
    drift = compare(night, before)
    night = replace(
        night,
        drift=drift,
        compared_with=[other.date for other in before],
        exit_code=exit_code or (_DRIFTED if drift else 0),
    )
    write_json(_file(out, night.date), asdict(night))
    return night


def _nights_before(out: str, day: str) -> list[Night]:
    """Return the nights before a day, the newest last."""
    files = objects.list_files(locations.join(out, NIGHTS), ".json")
    days = sorted(file.rpartition("/")[2].removesuffix(".json") for file in files)
    found = [read_night(out, one) for one in days if one < day][-NUM_NIGHTS:]
    return [night for night in found if night is not None]


def _file(out: str, day: str) -> str:
    return locations.join(out, NIGHTS, f"{day}.json")


def _parse(value: str) -> date:
    if value == "yesterday":
        return datetime.now(UTC).date() - timedelta(1)
    try:
        return datetime.strptime(value, "%Y-%m-%d").date()
    except ValueError:
        raise OptionError(f"a date must be written as 2026-11-20, or yesterday, got {value!r}") from None
