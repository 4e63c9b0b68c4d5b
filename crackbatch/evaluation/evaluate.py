"""Measures how good a model is on labelled images, and shows where it is wrong.

OUT/metrics.json        metrics with their intervals for each source, and the metrics of the operating points
OUT/errors.parquet      the misclassified images, the most suspicious labels first
OUT/errors.png          the worst false alarms and misses, to look at
OUT/confusion.png ranking.png reliability.png
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa

from crackbatch.cluster import check_address
from crackbatch.datasets.dataset import read_dataset, read_encoded
from crackbatch.datasets.labels import LabelRules
from crackbatch.datasets.pixels import number_rows, stream_pixels
from crackbatch.errors import OptionError, SourceError
from crackbatch.evaluation.inference import logits_here, logits_on_ray
from crackbatch.evaluation.metrics import Scored, confusion, each_and_all, measure, precision_at, without_nan
from crackbatch.evaluation.photos import evaluate_photos
from crackbatch.evaluation.plots import plot_confusion, plot_ranking, plot_reliability
from crackbatch.evaluation.unseen import choose_unseen
from crackbatch.images.picture import Picture, read_image, to_input
from crackbatch.images.sheet import Tile, contact_sheet
from crackbatch.models.bundle import DEFAULT_MODEL, Bundle, OperatingPoint, calibrated, read_bundle_and_weights
from crackbatch.models.heat import lay_over
from crackbatch.models.model import Model, default_device
from crackbatch.results.predictions import read_predictions
from crackbatch.sources.listing import check_sources
from crackbatch.sources.plan import local_roots
from crackbatch.storage import atomic, locations
from crackbatch.storage.documents import write_table
from crackbatch.storage.redaction import masked

_SHOWN = 32


@dataclass(frozen=True)
class Evaluation:
    """The content of `metrics.json`, and the folder where the files are."""

    out: str
    metrics: dict[str, Any]


def evaluate(
    sources: locations.Location | Sequence[locations.Location] = (),
    out: locations.Location = "",
    *,
    photos: locations.Location | None = None,
    model: locations.Location = DEFAULT_MODEL,
    predictions: locations.Location | None = None,
    run_id: str | None = None,
    threshold: float | None = None,
    operating_point: str | None = None,
    prevalence: float | None = None,
    include_seen: bool = False,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    group_pattern: str | None = None,
    group_column: str = "group",
    address: str | None = None,
) -> Evaluation:
    """Measure a model on labelled images that it was not trained or tuned on, and write figures and tables to `out`.

    With `predictions`, the images are not scored again: the published rows of runs are measured, at their own threshold
    if no threshold or operating point is given. With the `address` of a Ray cluster, its GPUs or nodes score the
    images. With `photos`, a CSV file with a label for each cell of photographs (`evaluation/views.py`), the maps and
    alarms of these photographs are measured instead. Raises RequestError.
    """
    if photos is not None:
        if sources or predictions is not None:
            raise OptionError("--photos names the photographs to measure on; give no other images or predictions")
        return Evaluation(*evaluate_photos(photos, out, model, threshold, operating_point))
    if run_id is not None and predictions is None:
        raise OptionError("--run-id selects a run of --predictions; give both, or neither")
    if prevalence is not None and not 0 < prevalence < 1:
        raise OptionError(f"--prevalence must be above 0 and below 1, got {prevalence:g}")
    check_address(address)
    names = check_sources(sources)
    rules = LabelRules(tuple(positive), tuple(negative), group_pattern, group_column)
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    line = bundle.draw_line(threshold, operating_point)
    location = atomic.check_output(os.fspath(out))
    with tempfile.TemporaryDirectory(prefix="crackbatch-evaluate-") as scratch:
        dataset = read_dataset(names, rules, scratch)
        rows, left_out = (dataset.table, {}) if include_seen else choose_unseen(dataset, bundle)
        loaded = Model(bundle, weights, default_device())
        if predictions is not None:
            probabilities, thresholds = _published(rows, os.fspath(predictions), run_id, bundle)
            if threshold is None and operating_point is None:
                line = _only(thresholds, os.fspath(predictions))
        else:
            numbered = number_rows(rows)
            if address is None:
                blocks = stream_pixels(numbered, bundle.input_size)
                logits = logits_here(blocks, loaded)
            else:
                logits = logits_on_ray(numbered, bundle, weights, address, local_roots(rows, names))
            probabilities = calibrated(logits, bundle.temperature)
        metrics = _measure(rows, probabilities, bundle, line, prevalence)
        metrics |= {"left_out": left_out, "notes": dataset.report.lines()}
        _write(location, rows, probabilities, line, metrics, loaded)
    return Evaluation(location, metrics)


def _published(rows: pa.Table, out: str, run_id: str | None, bundle: Bundle) -> tuple[np.ndarray, set[float]]:
    """Return the probabilities (images,) that runs with this model gave these images, and the thresholds of those rows.

    Images are matched by their sha256.
    """
    columns = ["sha256", "crack_probability", "status", "threshold"]
    frame = read_predictions(out, run_id=run_id, columns=columns, model_id=bundle.model_id)
    frame = frame[frame["status"] == "ok"]
    known = dict(zip(frame["sha256"], zip(frame["crack_probability"], frame["threshold"], strict=True), strict=True))
    digests = rows.column("sha256").to_pylist()
    if missing := sum(digest not in known for digest in digests):
        raise SourceError(
            f"{missing:,} of {len(digests):,} labelled images have no score from {bundle.model_id} in"
            f" {masked(out)}; score them first, or evaluate without --predictions"
        )
    probabilities, thresholds = zip(*(known[digest] for digest in digests), strict=True)
    return np.array(probabilities, np.float32), set(thresholds)


def _only(thresholds: set[float], out: str) -> float:
    if len(thresholds) > 1:
        shown = ", ".join(f"{threshold:g}" for threshold in sorted(thresholds))
        raise OptionError(
            f"rows in {masked(out)} were labelled at several thresholds ({shown}); choose one with --threshold"
        )
    return float(next(iter(thresholds)))


def _measure(
    rows: pa.Table, probabilities: np.ndarray, bundle: Bundle, threshold: float, prevalence: float | None
) -> dict[str, Any]:
    """Return the metrics for metrics.json."""
    return {
        "model_id": bundle.model_id,
        "threshold": threshold,
        "images": rows.num_rows,
        "sources": {
            name: _measure_source(scored, threshold, prevalence, bundle.operating_points)
            for name, scored in _by_source(rows, probabilities).items()
        },
    }


def _by_source(rows: pa.Table, probabilities: np.ndarray) -> dict[str, Scored]:
    """Return the images of each source, and of all sources together if there are several."""
    names = np.asarray(rows.column("source").to_pylist(), dtype=object)
    groups = np.asarray(rows.column("group").to_pylist(), dtype=object).astype(str)
    scored = Scored(probabilities, np.asarray(rows.column("label")).astype(np.int64), groups)
    return {name: scored.where(chosen) for name, chosen in each_and_all(names).items()}


def _measure_source(
    scored: Scored, threshold: float, prevalence: float | None, points: dict[str, OperatingPoint]
) -> dict[str, Any]:
    hits, false, missed, right = confusion(scored, threshold)
    said: dict[str, Any] = {
        "images": len(scored.labels),
        "cracked": int(scored.labels.sum()),
        "groups": len(set(scored.groups.tolist())),
        "confusion": {"hits": hits, "false_alarms": false, "misses": missed, "correct_rejections": right},
        "metrics": {name: asdict(metric) for name, metric in measure(scored, threshold).items()},
        "operating_points": {name: _reached(scored, point.threshold) for name, point in points.items()},
    }
    if prevalence is not None:
        reached = _reached(scored, threshold)
        said["precision_at_prevalence"] = {
            "prevalence": prevalence,
            "precision": precision_at(prevalence, reached["recall"], reached["false_alarm_rate"]),
        }
    return said


def _reached(scored: Scored, threshold: float) -> dict[str, float]:
    hits, false, missed, right = confusion(scored, threshold)
    return {
        "threshold": threshold,
        "precision": hits / (hits + false) if hits + false else math.nan,
        "recall": hits / (hits + missed) if hits + missed else math.nan,
        "false_alarm_rate": false / (false + right) if false + right else math.nan,
    }


def _write(
    out: str, rows: pa.Table, probabilities: np.ndarray, threshold: float, metrics: dict[str, Any], model: Model
) -> None:
    scored = _by_source(rows, probabilities)
    counts = {name: confusion(part, threshold) for name, part in scored.items()}
    wrong = _errors(rows, probabilities, threshold)
    write_table(locations.join(out, "errors.parquet"), wrong.drop_columns(["row"]))
    files = {
        "errors.png": _draw_errors(rows, wrong, model),
        "confusion.png": plot_confusion(counts, threshold),
        "ranking.png": plot_ranking(scored, threshold),
        "reliability.png": plot_reliability(scored),
        "metrics.json": json.dumps(without_nan(metrics), indent=2).encode() + b"\n",
    }
    for name, data in files.items():
        atomic.write_whole(locations.join(out, name), data)


def _errors(rows: pa.Table, probabilities: np.ndarray, threshold: float) -> pa.Table:
    """Return the misclassified images; the first are the ones where the model disagrees most with the label."""
    labels = np.asarray(rows.column("label")).astype(np.int64)
    sure = np.where(labels == 1, 1 - probabilities, probabilities)  # how sure the model is that the label is wrong
    wrong = np.flatnonzero((probabilities >= np.float32(threshold)) != (labels == 1))
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    return pa.table(
        {
            "row": wrong,
            "kind": ["miss" if labels[row] else "false alarm" for row in wrong],
            **{name: rows.column(name).take(wrong) for name in ("image_uri", "path", "source", "group")},
            "label": ["crack" if labels[row] else "no_crack" for row in wrong],
            "crack_probability": probabilities[wrong],
            "sha256": rows.column("sha256").take(wrong),
        }
    )


def _draw_errors(rows: pa.Table, wrong: pa.Table, model: Model) -> bytes:
    """Return a contact sheet (PNG) of the worst errors of each kind, each beside its class activation if it has one."""
    sections = {}
    for kind, title in (("false alarm", "False alarms"), ("miss", "Misses")):
        mine = wrong.filter(pa.array([found == kind for found in wrong.column("kind").to_pylist()], pa.bool_()))
        shown = mine.slice(0, _SHOWN)
        tiles = []
        chosen = rows.take(shown.column("row"))
        images = [image for batch in read_encoded(chosen) for image in batch]
        for image, path, probability in zip(
            images, shown.column("path").to_pylist(), shown.column("crack_probability").to_pylist(), strict=True
        ):
            picture = read_image(image.data or b"")
            if picture.pixels is not None:
                folder, _, name = path.rpartition("/")
                tiles.append(Tile(picture.pixels, [f"crack {probability:.3f}", name, folder]))
                if model.has_maps:
                    tiles.append(Tile(_with_map(picture, model), ["what looks like a crack"]))
        sections[f"{title}: {mine.num_rows:,} (worst {shown.num_rows} shown)"] = tiles
    return contact_sheet(sections)


def _with_map(picture: Picture, model: Model) -> PIL.Image.Image:
    assert picture.pixels is not None
    crack_map = model.map_tile(to_input(picture, model.bundle.input_size), *picture.pixels.size)
    return lay_over(picture.pixels, *picture.pixels.size, crack_map, None)
