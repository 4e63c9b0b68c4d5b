"""Measures a model on photographs with a label for each cell: the map by cell, and the alarms by view."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch.evaluation.metrics import Scored, each_and_all, measure, without_nan
from crackbatch.evaluation.views import LabelledPhoto, View, cell_logits, cut_views, map_photos, read_cells, score_views
from crackbatch.models.bundle import Bundle, PhotoSettings, calibrated, read_bundle_and_weights
from crackbatch.models.model import Model, default_device
from crackbatch.models.photo import CrackMap, check_calibrated, judge
from crackbatch.storage import atomic, locations
from crackbatch.storage.documents import write_table

_NUM_SAMPLES = 1000


def evaluate_photos(
    cells: locations.Location,
    out: locations.Location,
    model: locations.Location,
    threshold: float | None,
    operating_point: str | None,
) -> tuple[str, dict[str, Any]]:
    """Measure a model on photographs with a label for each cell; return the location of the files and the metrics.

    `cells` is a CSV file (`evaluation/views.py`). It measures the map by cell, and the alarms by view. Raises
    RequestError.
    """
    photos = read_cells(os.fspath(cells))
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    check_calibrated(bundle, "--photos")
    assert bundle.photo is not None
    bundle.draw_line(threshold, operating_point)
    line = bundle.draw_photo_line(threshold, operating_point)
    location = atomic.check_output(os.fspath(out))
    maps = map_photos(photos, Model(bundle, weights, default_device()), bundle.photo)
    views = cut_views(photos, maps)
    metrics = {
        "model_id": bundle.model_id,
        "threshold": line,
        "photographs": len(photos),
        "cells": _measure_cells(photos, maps, bundle),
        "views": _measure_views(views, bundle.photo, line),
    }
    write_table(locations.join(location, "photographs.parquet"), _photo_table(photos, maps, bundle, line))
    atomic.write_whole(
        locations.join(location, "metrics.json"), json.dumps(without_nan(metrics), indent=2).encode() + b"\n"
    )
    return location, metrics


def _measure_cells(photos: Sequence[LabelledPhoto], maps: Sequence[CrackMap], bundle: Bundle) -> dict[str, Any]:
    """Return how well the map tells cracked cells from sound ones, by surface; intervals are over photographs."""
    logits = [cell_logits(photo, crack_map) for photo, crack_map in zip(photos, maps, strict=True)]
    groups = np.repeat([photo.name for photo in photos], [len(photo.cells) for photo in photos])
    surfaces = np.repeat([photo.surface for photo in photos], [len(photo.cells) for photo in photos])
    labels = np.concatenate([photo.cracked for photo in photos]).astype(np.int64)
    scored = Scored(calibrated(np.concatenate(logits), bundle.temperature), labels, groups)
    found = {}
    for name, chosen in each_and_all(surfaces).items():
        part = scored.where(chosen)
        metrics = measure(part, bundle.draw_line(None, None))
        found[name] = {
            "cells": len(part.labels),
            "cracked": int(part.labels.sum()),
            "photographs": len(set(part.groups.tolist())),
            **{metric: asdict(metrics[metric]) for metric in ("roc_auc", "average_precision")},
        }
    return found


def _measure_views(views: Sequence[View], settings: PhotoSettings, threshold: float) -> dict[str, Any]:
    """Return alarms of views by surface, at the threshold and at each operating point."""
    lines = {"threshold": threshold, **{name: point.threshold for name, point in settings.operating_points.items()}}
    scored, megapixels = score_views(views, settings), np.array([view.megapixels for view in views])
    found = {}
    for name, chosen in each_and_all(np.array([view.surface for view in views])).items():
        part = scored.where(chosen)
        found[name] = {
            "views": len(part.labels),
            "cracked": int(part.labels.sum()),
            "photographs": len(set(part.groups.tolist())),
            "roc_auc": asdict(measure(part, threshold)["roc_auc"]),
            "at": {point: _alarms(part, megapixels[chosen], line) for point, line in lines.items()},
        }
    return found


def _alarms(scored: Scored, megapixels: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return recall, false alarms per 100 sound views and per 100 megapixels of them, with intervals over photographs.

    The 95 % intervals are by bootstrap over photographs.
    """
    alarm, cracked = scored.probabilities >= np.float32(threshold), scored.labels == 1
    names, codes = np.unique(scored.groups, return_inverse=True)
    random = np.random.default_rng(0)
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), _NUM_SAMPLES)[:, codes]
    found = {}
    with np.errstate(all="ignore"):
        for name, hit, of in (
            ("recall", alarm & cracked, 1.0 * cracked),
            ("false_alarms_per_100_views", 100.0 * (alarm & ~cracked), 1.0 * ~cracked),
            ("false_alarms_per_100_megapixels", 100.0 * (alarm & ~cracked), megapixels * ~cracked),
        ):
            drawn = (weights * hit).sum(1) / (weights * of).sum(1)
            drawn = drawn[np.isfinite(drawn)]
            low, high = np.percentile(drawn, (2.5, 97.5)) if len(names) > 1 and len(drawn) else (np.nan, np.nan)
            found[name] = {"value": float(hit.sum() / of.sum()), "low": float(low), "high": float(high)}
    return {"threshold": threshold, **found}


def _photo_table(
    photos: Sequence[LabelledPhoto], maps: Sequence[CrackMap], bundle: Bundle, threshold: float
) -> pa.Table:
    """Return a row for each photograph: its cells, its probability, and its worst region."""
    assert bundle.photo is not None
    verdicts = [judge(crack_map, bundle.photo) for crack_map in maps]
    probabilities = calibrated(np.array([verdict.logit for verdict in verdicts]), 1.0)
    boxes = [verdict.box or (None,) * 4 for verdict in verdicts]
    return pa.table(
        {
            "file": [photo.name for photo in photos],
            "surface": [photo.surface for photo in photos],
            "cells": [len(photo.cells) for photo in photos],
            "cracked": [int(photo.cracked.sum()) for photo in photos],
            "crack_probability": probabilities,
            "label": np.where(probabilities >= np.float32(threshold), *reversed(bundle.classes)).tolist(),
            "tiles": [verdict.tiles for verdict in verdicts],
            "crack_tiles": [verdict.crack_tiles for verdict in verdicts],
            **{f"box_{side}": pa.array([box[at] for box in boxes], pa.int32()) for at, side in enumerate("xywh")},
        }
    )
