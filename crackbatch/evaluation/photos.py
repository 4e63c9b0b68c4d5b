"""Measures and calibrates how photographs are judged: on photographs with a label for each cell."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.evaluation.calibration import halfway
from crackbatch.evaluation.metrics import Metric, Scored, curves, measure
from crackbatch.evaluation.views import LabelledPhoto, View, cell_logits, cut_views, map_photos, read_cells
from crackbatch.models.bundle import (
    DEFAULT_MODEL,
    DEFAULT_OPERATING_POINT,
    Bundle,
    PhotoPoint,
    PhotoSettings,
    calibrated,
    read_bundle_and_weights,
    resolve,
    write_bundle,
)
from crackbatch.models.card import FILE as CARD
from crackbatch.models.card import with_photo_section
from crackbatch.models.model import Model, default_device
from crackbatch.models.photo import CrackMap, judge, scale_of, strength_of
from crackbatch.models.seen import FILE as SEEN
from crackbatch.progress import Step, counted
from crackbatch.storage import atomic, locations, objects
from crackbatch.storage.documents import write_table
from crackbatch.storage.redaction import masked

_RECALL, _FALSE_ALARMS = 0.95, 10.0
_CUTS = np.arange(-1.0, 2.01, 0.25)
_NUM_SAMPLES = 1000
_FEW = 20


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
    if bundle.photo is None:
        raise BundleError(f"model {bundle.name} is not calibrated for photographs; do so with `crackbatch calibrate`")
    bundle.draw_line(threshold, operating_point)
    line = bundle.draw_photo_line(threshold, operating_point)
    location = atomic.check_output(os.fspath(out))
    maps = _maps(photos, Model(bundle, weights, default_device()), bundle.photo)
    views = [view for photo, crack_map in zip(photos, maps, strict=True) for view in cut_views(photo, crack_map)]
    metrics = {
        "model_id": bundle.model_id,
        "threshold": line,
        "photographs": len(photos),
        "cells": _measure_cells(photos, maps, bundle),
        "views": _measure_views(views, bundle.photo, line),
    }
    write_table(locations.join(location, "photographs.parquet"), _photo_table(photos, maps, bundle, line))
    atomic.write_whole(locations.join(location, "metrics.json"), json.dumps(metrics, indent=2).encode() + b"\n")
    return location, metrics


def calibrate(
    cells: locations.Location,
    out: locations.Location,
    *,
    model: locations.Location = DEFAULT_MODEL,
    tile_size: float | None = None,
    ground_resolution: float | None = None,
) -> Bundle:
    """Choose how a model judges photographs, and write a copy of its bundle with these settings to `out`.

    `cells` are the labels of photographs that the model was not trained on. One window covers `tile_size` pixels of
    them, by default a cell. `ground_resolution` is how many millimetres of the surface a pixel of them shows. Raises
    RequestError.
    """
    if ground_resolution is not None and not 0 < ground_resolution < np.inf:
        raise OptionError(f"--ground-resolution must be above 0 (millimetres a pixel), got {ground_resolution:g}")
    photos = read_cells(os.fspath(cells))
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    location = atomic.check_output(os.fspath(out))
    cell = float(np.median(np.concatenate([photo.cells[:, 2] for photo in photos])))
    window = cell if tile_size is None else tile_size
    if window < 1:
        raise OptionError(f"--tile-size must be 1 or more, got {window:g}")
    settings = PhotoSettings(window, 0.0, 0.0, 1.0, {}, ground_resolution)
    maps = _maps(photos, Model(bundle, weights, default_device()), settings)
    views = [view for photo, crack_map in zip(photos, maps, strict=True) for view in cut_views(photo, crack_map)]
    num_cracked = sum(view.is_cracked for view in views)
    if min(num_cracked, len(views) - num_cracked) < _FEW:
        raise SourceError(
            f"{masked(os.fspath(cells))} gives {num_cracked:,} cracked and {len(views) - num_cracked:,} sound views;"
            f" at least {_FEW} of each are needed"
        )
    settings = replace(_fit(views, settings), width=int(np.median([crack_map.width for crack_map in maps])))
    settings = replace(
        settings,
        operating_points=_choose_points(views, settings),
        calibration={
            "photographs": len(photos),
            "views": len(views),
            "cracked_views": num_cracked,
            "megapixels": round(sum(view.megapixels for view in views), 1),
        },
    )
    return _write(replace(bundle, photo=settings, location=location), bundle.location, weights)


def _maps(photos: Sequence[LabelledPhoto], model: Model, settings: PhotoSettings) -> list[CrackMap]:
    done = 0

    def note(num: int) -> None:
        nonlocal done
        done = num

    scale = scale_of(model.bundle.input_size, settings, None, None)
    with Step("looking at photographs", lambda: f" {done} of {counted(len(photos), 'photograph')}"):
        return map_photos(photos, model, scale, note)


def _measure_cells(photos: Sequence[LabelledPhoto], maps: Sequence[CrackMap], bundle: Bundle) -> dict[str, Any]:
    """Return how well the map tells cracked cells from sound ones, by surface; intervals are over photographs."""
    logits = [cell_logits(photo, crack_map) for photo, crack_map in zip(photos, maps, strict=True)]
    groups = np.repeat([photo.name for photo in photos], [len(photo.cells) for photo in photos])
    surfaces = np.repeat([photo.surface for photo in photos], [len(photo.cells) for photo in photos])
    labels = np.concatenate([photo.cracked for photo in photos]).astype(np.int64)
    scored = Scored(calibrated(np.concatenate(logits), bundle.temperature), labels, groups)
    line = bundle.draw_line(None, None)
    return {
        name: {
            "cells": len(part.labels),
            "cracked": int(part.labels.sum()),
            "photographs": len(set(part.groups.tolist())),
            **{metric: _finite(measure(part, line)[metric]) for metric in ("roc_auc", "average_precision")},
        }
        for name, part in _by_surface(scored, surfaces).items()
    }


def _by_surface(scored: Scored, surfaces: np.ndarray) -> dict[str, Scored]:
    parts = {str(name): scored.where(surfaces == name) for name in sorted(set(surfaces.tolist()))}
    return parts if len(parts) == 1 else {**parts, "all": scored}


def _measure_views(views: Sequence[View], settings: PhotoSettings, threshold: float) -> dict[str, Any]:
    """Return alarms of views by surface, at the threshold and at each operating point."""
    lines = {"threshold": threshold, **{name: point.threshold for name, point in settings.operating_points.items()}}
    surfaces = sorted({view.surface for view in views})
    parts = {name: [view for view in views if view.surface == name] for name in surfaces}
    if len(parts) != 1:
        parts["all"] = list(views)
    return {
        name: {
            "views": len(part),
            "cracked": sum(view.is_cracked for view in part),
            "photographs": len({view.photo for view in part}),
            "roc_auc": _finite(measure(_scored(part, settings), threshold)["roc_auc"]),
            "at": {point: alarms_of(part, settings, line) for point, line in lines.items()},
        }
        for name, part in parts.items()
        if part
    }


def _scored(views: Sequence[View], settings: PhotoSettings) -> Scored:
    return Scored(
        _probabilities(views, settings),
        np.array([view.is_cracked for view in views], np.int64),
        np.array([view.photo for view in views]),
    )


def _probabilities(views: Sequence[View], settings: PhotoSettings) -> np.ndarray:
    return calibrated(np.array([judge(view.crack_map, settings).logit for view in views]), 1.0)


def alarms_of(views: Sequence[View], settings: PhotoSettings, threshold: float) -> dict[str, Any]:
    """Return recall, false alarms per 100 sound views and per 100 megapixels of them, with intervals over photographs.

    The 95 % intervals are by bootstrap over photographs.
    """
    scored = _scored(views, settings)
    alarm, cracked = scored.probabilities >= np.float32(threshold), scored.labels == 1
    megapixels = np.array([view.megapixels for view in views])
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
            found[name] = {"value": _number(hit.sum() / of.sum()), "low": _number(low), "high": _number(high)}
    return {"threshold": threshold, **found}


def _number(value: float) -> float | None:
    """Return None instead of a value that is undefined, because JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _finite(metric: Metric) -> dict[str, float | None]:
    return {name: _number(value) for name, value in asdict(metric).items()}


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


def _fit(views: Sequence[View], settings: PhotoSettings) -> PhotoSettings:
    """Return the settings with the cut, intercept and slope that give the lowest log loss on the views."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    labels = np.array([view.is_cracked for view in views])
    best: tuple[float, PhotoSettings] | None = None
    for cut in _CUTS:
        strengths = np.array([[strength_of(view.crack_map, float(cut))] for view in views])
        fitted = LogisticRegression().fit(strengths, labels)
        loss = float(log_loss(labels, fitted.predict_proba(strengths)[:, 1]))
        slope = float(fitted.coef_[0, 0])
        if slope > 0 and (best is None or loss < best[0]):
            best = loss, replace(settings, cut=float(cut), intercept=float(fitted.intercept_[0]), slope=slope)
    if best is None:
        raise SourceError("the model does not tell cracked views from sound ones; train it on photographs like these")
    return best[1]


def _choose_points(views: Sequence[View], settings: PhotoSettings) -> dict[str, PhotoPoint]:
    """Return named thresholds with what they reach on these views.

    `balanced` has the best mean of recall and specificity. `recall_95` finds at least 95 % of the cracked views. With
    `false_alarms_10`, at most 10 of 100 sound views raise an alarm.
    """
    recall, _, alarms, steps = curves(_scored(views, settings))
    allowed = np.flatnonzero(100 * alarms <= _FALSE_ALARMS)
    chosen = {
        DEFAULT_OPERATING_POINT: int(np.argmax(recall - alarms)),
        "recall_95": int(np.argmax(recall >= _RECALL)),
        "false_alarms_10": int(allowed[-1]) if len(allowed) else 0,
    }
    lines = halfway(steps)
    return {
        name: PhotoPoint(float(lines[at]), round(float(recall[at]), 4), round(100 * float(alarms[at]), 2))
        for name, at in chosen.items()
    }


def _write(bundle: Bundle, source: str, weights: bytes) -> Bundle:
    """Write the bundle, with the card and the list of seen images of the bundle that it was made from."""
    for name in (SEEN, CARD):
        try:
            data = objects.read_bytes(locations.join(resolve(source), name))
        except FileNotFoundError:
            continue
        if name == CARD:
            data = with_photo_section(data.decode(), bundle).encode()
        atomic.write_whole(locations.join(bundle.location, name), data)
    return write_bundle(bundle, weights)
