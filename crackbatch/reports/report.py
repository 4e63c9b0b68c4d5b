"""Writes the report of a run: one page that shows what was found, what failed and what changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crackbatch.errors import OptionError, OutputError, RunError
from crackbatch.models.bundle import DEFAULT_MODEL, OperatingPoint
from crackbatch.models.model import Model
from crackbatch.progress import Step, counted
from crackbatch.reports.charts import histogram, map_positions
from crackbatch.reports.compare_runs import RunComparison, compare_runs
from crackbatch.reports.exports import records
from crackbatch.reports.folders import count_folders
from crackbatch.reports.page import Content, Expected, Failures, Kind, Pictured, render
from crackbatch.reports.thumbnails import COLUMNS, Thumbnail, draw_thumbnails, model_of, wanted
from crackbatch.results.maps import read_maps
from crackbatch.results.predictions import read_predictions
from crackbatch.results.resolution import RESOLUTION
from crackbatch.results.run import Run
from crackbatch.results.states import ListedRun, published_runs
from crackbatch.storage import atomic, locations, ranges
from crackbatch.storage.documents import read_json
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import pandas as pd

MOST_PICTURES = 500
_NUM_NEAR = 24  # pictures of images near the threshold
_NUM_EXAMPLES = 5  # of each cause of failure


@dataclass(frozen=True)
class Report:
    """The page that was written, its run, its number of images, and the pictures on it.

    `notes` says what is not on the page, and why.
    """

    file: str
    run_id: str
    images: int
    pictures: int
    notes: list[str]


def report(
    out: locations.Location,
    file: locations.Location,
    *,
    run_id: str | None = None,
    top: int = 100,
    model: locations.Location = DEFAULT_MODEL,
    maps: bool = False,
) -> Report:
    """Write the report of a published run of `out`, by default of the newest, as one HTML file that needs no other.

    It has pictures of the `top` most probable images. `model` is the model of the run; it draws where in a tile the
    crack is. Crack maps of photographs are those that `score --maps` published; with `maps`, the model makes those
    that are missing. Raises RequestError.
    """
    location = check_page(file)
    if not 0 <= top <= MOST_PICTURES:
        raise OptionError(f"--top must be from 0 to {MOST_PICTURES}, got {top}")
    listed = published_runs(out)
    chosen = _choose(listed, run_id, os.fspath(out))
    run = Run(locations.normalize(os.fspath(out)), chosen.run_id, chosen.date)
    with Step("reading rows"):
        schema = _schema_of(run)
        rows = _read(run, schema)
    notes: list[str] = []
    network = model_of([chosen.model_id], model, notes) if top else None
    with Step("comparing with the run before"):
        comparison = _compare(run.out, listed, chosen)
    first, near = _first(rows, top), _near(rows, top)
    pictured = _picture([*first, *near], run, network, maps, notes)
    content = Content(
        run=chosen,
        asked=read_json(locations.join(run.folder, "run.json")) or {},
        summary=read_json(locations.join(run.folder, "summary.json")) or {},
        statuses=chosen.statuses,
        kinds=list(_kinds(rows, _about(schema))),
        folders=count_folders(rows),
        positions=map_positions(rows),
        most_probable=pictured[: len(first)],
        nearest=pictured[len(first) :],
        failures=list(_failures(rows, chosen.statuses)),
        comparison=comparison,
        notes=notes,
    )
    atomic.write_whole(location, render("report.html", content=content))
    num_pictures = sum(one.thumbnail.whole is not None for one in pictured)
    return Report(masked(location), chosen.run_id, len(rows), num_pictures, notes)


def check_page(file: locations.Location) -> str:
    """Return the location of a page, normalized; raise OptionError if its name does not end in .html."""
    name = os.fspath(file)
    if not locations.file_name(name).lower().endswith((".html", ".htm")):
        raise OptionError(f"the name of the page must end in .html, got {masked(name)!r}")
    return locations.normalize(name)


def _choose(listed: list[ListedRun], run_id: str | None, out: str) -> ListedRun:
    if not listed:
        raise OutputError(f"no published run in {masked(out)}; run `crackbatch score` with this --out first")
    if run_id is None:
        return listed[-1]
    for run in listed:
        if run.run_id == run_id:
            return run
    known = ", ".join(run.run_id for run in listed[-5:])
    raise OptionError(f"{masked(out)} has no published run {run_id!r}; the newest are {known}")


def _schema_of(run: Run) -> pa.Schema:
    with ranges.open_file(run.published_files()[0]) as file:
        return pq.read_schema(file)


def _read(run: Run, schema: pa.Schema) -> pd.DataFrame:
    """Return the rows of a run, with the resolution of the photographs if a manifest gave it."""
    resolution = [RESOLUTION] if RESOLUTION in schema.names else []
    return read_predictions(run.out, run_id=run.run_id, columns=[*COLUMNS, *resolution])


def _about(schema: pa.Schema) -> dict[str, Any]:
    """Return what the table says of its model: operating points, and those for photographs."""
    metadata = schema.metadata or {}
    return {
        name: json.loads(metadata.get(f"crackbatch.{name}".encode(), b"{}")) for name in ("operating_points", "photo")
    }


def _compare(out: str, listed: list[ListedRun], chosen: ListedRun) -> RunComparison | None:
    place = listed.index(chosen)
    if not place:
        return None
    before, after = (locations.join(out, "runs", listed[at].run_id) for at in (place - 1, place))
    return compare_runs(before, after)


def _first(rows: pd.DataFrame, top: int) -> list[dict[str, Any]]:
    return records(rows[rows["status"] == "ok"].head(top))


def _near(rows: pd.DataFrame, top: int) -> list[dict[str, Any]]:
    """Return the rows nearest to their threshold that are not among the first `top`, the nearest first."""
    others = rows[rows["status"] == "ok"].iloc[top:]
    distance = (others["crack_probability"] - others["threshold"]).abs()
    return records(others.loc[distance.nsmallest(min(top, _NUM_NEAR)).index])


def _picture(
    rows: list[dict[str, Any]], run: Run, model: Model | None, computes_maps: bool, notes: list[str]
) -> list[Pictured]:
    if not rows:
        return []
    stored = read_maps(run, wanted(rows))
    drawn = list[tuple[int, Thumbnail]]()
    with Step("drawing", lambda: f" {len(drawn)} of {counted(len(rows), 'picture')}"):
        try:
            drawn.extend(draw_thumbnails(rows, stored, model, computes_maps))
        except RunError as error:  # a store that refuses everything; the counts are worth a page without pictures
            notes.append(f"Pictures are missing: {error}")
    missing = Thumbnail(reason="it was not opened")
    thumbnails = dict(drawn)
    pictured = [Pictured(row, thumbnails.get(place, missing)) for place, row in enumerate(rows)]
    without_map = [
        one for one in pictured if one.row["tiles"] is not None and one.thumbnail.whole and not one.thumbnail.has_map
    ]
    if without_map:
        notes.append(
            f"Only with a box around the worst region, without a crack map: {counted(len(without_map), 'photograph')};"
            " score with --maps, or make the report with --maps (slow)."
        )
    return pictured


def _kinds(rows: pd.DataFrame, about: dict[str, Any]) -> Iterator[Kind]:
    """Yield the tiles of the run, and its photographs, if it has any."""
    scored = rows[rows["status"] == "ok"]
    points = {
        "tiles": about["operating_points"],
        "photographs": (about["photo"] or {}).get("operating_points", {}),
    }
    for name, some in (("tiles", scored[scored["tiles"].isna()]), ("photographs", scored[scored["tiles"].notna()])):
        if some.empty:
            continue
        threshold = float(some["threshold"].iloc[0])
        cracks = int((some["label"] == "crack").sum())
        point = next(
            (key for key, at in points[name].items() if np.float32(at["threshold"]) == np.float32(threshold)), None
        )
        reached = {} if point is None else points[name][point]
        expected = _expect(OperatingPoint(**reached), len(some), cracks) if reached and name == "tiles" else None
        yield Kind(
            name,
            len(some),
            cracks,
            threshold,
            histogram(some["crack_probability"].to_numpy()),
            point,
            reached,
            expected,
        )


def _expect(point: OperatingPoint, images: int, flagged: int) -> Expected | None:
    """Estimate how many images show a crack from how many are flagged (Rogan & Gladen 1978, Am. J. Epidemiol. 107, 71).

    It assumes that the images are like those on which the operating point was measured.
    """
    if point.recall is None or point.false_alarm_rate is None or point.recall <= point.false_alarm_rate:
        return None
    share = (flagged / images - point.false_alarm_rate) / (point.recall - point.false_alarm_rate)
    prevalence = min(1.0, max(0.0, share))
    return Expected(
        prevalence, min(flagged, point.recall * prevalence * images), (1 - point.recall) * prevalence * images
    )


def _failures(rows: pd.DataFrame, statuses: dict[str, int]) -> Iterable[Failures]:
    for status, count in statuses.items():
        if status != "ok":
            yield Failures(status, count, records(rows[rows["status"] == status].head(_NUM_EXAMPLES)))
