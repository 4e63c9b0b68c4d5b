"""The summary of a run, and the counts of its published rows."""

from __future__ import annotations

import heapq
import html
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackbatch.results.parts import by_frequency, values_of
from crackbatch.results.resolution import RESOLUTION, read_resolution
from crackbatch.results.run import Run
from crackbatch.results.table import LABELS
from crackbatch.storage import ranges

_NUM_SHOWN = 5
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Likely:
    """An image and its probability of a crack."""

    image_uri: str
    crack_probability: float


class Photos(NamedTuple):
    """Photographs that were looked at in windows: their number, their windows, those at a guessed scale.

    `coarsest` is the largest number of millimetres in a pixel that a manifest gives.
    """

    num: int = 0
    windows: int = 0
    guessed: int = 0
    coarsest: float = 0.0


@dataclass(frozen=True)
class Counts:
    """The published rows of a run: by status, by label, quantiles of the probability, and the most probable rows."""

    statuses: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    quantiles: dict[str, float] = field(default_factory=dict)
    most_probable: list[Likely] = field(default_factory=list)
    photos: Photos = field(default_factory=Photos)


@dataclass(frozen=True)
class RunSummary:
    """What a run did. `score` returns it, and `summary.json` holds it.

    `statuses` and `labels` count the rows of the run. `quantiles` are of the probability, such as `0.5` for the median.
    `most_probable` are the first rows. `photographs` counts the images that were looked at in `windows`; `notes` says
    what to doubt in their results. `images` counts all rows of the run, `added` the rows of this call. `size_bytes` is
    the encoded size of the images in the sources, where it is known. `seconds` is the duration of the whole call.
    `retries` counts repeated storage requests, `decoder_deaths` decoder processes that images have ended. If
    `--max-errors` ended the run, `stopped_early` is set, and some images have no row. After a dry run, `images` counts
    the images that would be read, and `added` is 0.
    """

    run_id: str
    date: str
    out: str
    model_id: str
    threshold: float
    images: int
    added: int
    size_bytes: int
    statuses: dict[str, int]
    labels: dict[str, int]
    quantiles: dict[str, float]
    most_probable: list[Likely]
    archives: int
    passed_over: dict[str, int]
    problems: list[str]
    notes: list[str]
    photographs: int
    windows: int
    files: list[str]
    seconds: float
    images_per_s: float | None
    stages: dict[str, dict[str, float]]
    max_error_rate: float
    retries: int
    decoder_deaths: int
    stopped_early: bool
    exit_code: int

    @property
    def error_rate(self) -> float:
        """The share of the run's images that have no score."""
        return 1 - self.statuses.get("ok", 0) / self.images if self.images else 0.0

    @property
    def findings(self) -> str:
        """One line: how many images show a crack, how many show none, and how many have no score, with the reasons."""
        return findings(self.labels, self.statuses)

    def _repr_html_(self) -> str:
        """Return the summary as a notebook shows it."""
        rows = [
            f"<tr><td>{likely.crack_probability:.3f}</td><td>{html.escape(likely.image_uri)}</td></tr>"
            for likely in self.most_probable
        ]
        said = [f"<b>{html.escape(self.run_id or 'dry run')}</b>: {self.images:,} images", html.escape(self.findings)]
        said += [html.escape(line) for line in [*self.problems, *self.notes] if line]
        table = f"<table><tr><th>probability</th><th>image</th></tr>{''.join(rows)}</table>" if rows else ""
        return "<br>".join(line for line in said if line) + table


def findings(labels: dict[str, int], statuses: dict[str, int]) -> str:
    """Return counts of labels and of images without a score in one line, such as `crack 312, no crack 11,045`."""
    failed = {status: count for status, count in statuses.items() if status != "ok"}
    said = [f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(labels.items())]
    if not labels and "ok" in statuses:  # an older summary does not count labels
        said = [f"ok {statuses['ok']:,}"]
    if failed:
        reasons = ", ".join(f"{status} {count:,}" for status, count in failed.items())
        said.append(f"could not be scored {sum(failed.values()):,} ({reasons})")
    return ", ".join(said)


def count_rows(run: Run, widest: float | None = None) -> Counts:
    """Count the rows of the run's published files.

    Photographs wider than `widest` pixels for which a manifest gives no resolution count as guessed.
    """
    statuses, labels = Counter[str](), Counter[str]()
    probabilities, photos, first = [np.empty(0, np.float32)], [Photos()], list[Likely]()
    for file in run.published_files():
        with ranges.open_file(file) as opened:
            table = pq.ParquetFile(opened, pre_buffer=False)
            wanted = ("status", "label", "crack_probability", "tiles", "width", RESOLUTION)
            names = [name for name in wanted if name in table.schema_arrow.names]
            rows = table.read(names, use_threads=False)
            first += _first(table)
        statuses.update(values_of(rows.column("status")))
        labels.update(values_of(rows.column("label").drop_null()))
        probabilities.append(rows.column("crack_probability").drop_null().to_numpy())
        photos.append(_count_photos(rows, widest))
    nums, windows, guessed, coarsest = zip(*photos, strict=True)
    found = np.concatenate(probabilities)
    quantiles = np.quantile(found, _QUANTILES).tolist() if len(found) else []
    return Counts(
        by_frequency(statuses),
        {name: labels.get(name, 0) for name in LABELS} if len(found) else {},
        {f"{share:g}": round(value, 6) for share, value in zip(_QUANTILES, quantiles, strict=False)},
        heapq.nlargest(_NUM_SHOWN, first, key=lambda likely: likely.crack_probability),
        Photos(sum(nums), sum(windows), sum(guessed), max(coarsest)),
    )


def _first(table: pq.ParquetFile) -> list[Likely]:
    """Return the first rows of a file, which is sorted by probability."""
    for batch in table.iter_batches(_NUM_SHOWN, columns=["image_uri", "crack_probability"], use_threads=False):
        rows = batch.filter(pc.is_valid(batch.column("crack_probability"))).to_pylist()
        return [Likely(**row) for row in rows]
    return []


def _count_photos(rows: pa.Table, widest: float | None) -> Photos:
    rows = rows.filter(pc.is_valid(rows.column("tiles")))
    windows, guessed = pc.sum(rows.column("tiles")).as_py() or 0, 0
    is_stated = RESOLUTION in rows.column_names
    stated = [read_resolution(value) for value in rows.column(RESOLUTION).to_pylist()] if is_stated else []
    if widest is not None:
        is_unknown = [value is None for value in stated] or [True] * rows.num_rows
        unknown = rows.column("width").filter(pa.array(is_unknown, pa.bool_()))
        guessed = pc.sum(pc.greater(unknown, widest)).as_py() or 0
    return Photos(rows.num_rows, windows, guessed, max((value for value in stated if value is not None), default=0.0))
