"""Chooses how a model judges photographs, on photographs with a label for each cell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crackbatch.errors import SourceError
from crackbatch.evaluation.calibration import halfway, last, write_calibrated
from crackbatch.evaluation.metrics import curves
from crackbatch.evaluation.views import View, cut_views, label_views, map_photos, read_cells, score_views
from crackbatch.models.bundle import (
    DEFAULT_MODEL,
    DEFAULT_OPERATING_POINT,
    Bundle,
    PhotoPoint,
    PhotoSettings,
    read_bundle_and_weights,
)
from crackbatch.models.card import PHOTO_TITLE, photo_section
from crackbatch.models.model import Model, default_device
from crackbatch.models.photo import check_scale, strength_of
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked

_RECALL, _FALSE_ALARMS = 0.95, 10.0
# With a higher cut a region, and its box, would hold only the clearest part of a crack; the loss is hardly lower.
_CUTS = np.arange(-1.0, 1.01, 0.25)
_FEW = 20


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
    check_scale(tile_size, ground_resolution)
    photos = read_cells(os.fspath(cells))
    bundle, weights = read_bundle_and_weights(os.fspath(model))
    location = atomic.check_output(os.fspath(out))
    labels = label_views(photos)
    num_cracked, num_sound = int(labels.sum()), int((~labels).sum())
    if min(num_cracked, num_sound) < _FEW:
        raise SourceError(
            f"{masked(os.fspath(cells))} gives {num_cracked:,} cracked and {num_sound:,} sound views;"
            f" at least {_FEW} of each are needed"
        )
    cell = float(np.median(np.concatenate([photo.cells[:, 2] for photo in photos])))
    window = cell if tile_size is None else tile_size
    settings = PhotoSettings(window, 0.0, 0.0, 1.0, {}, ground_resolution)
    maps = map_photos(photos, Model(bundle, weights, default_device()), settings)
    views = cut_views(photos, maps)
    settings = replace(_fit(views, settings), width=int(np.median([crack_map.width for crack_map in maps])))
    settings = replace(
        settings,
        operating_points=_choose_points(views, settings),
        calibration={
            "photographs": len(photos),
            "views": len(views),
            "cracked_views": sum(view.is_cracked for view in views),
            "megapixels": round(sum(view.megapixels for view in views), 1),
        },
    )
    changed = replace(bundle, photo=settings, location=location)
    return write_calibrated(changed, bundle.location, weights, PHOTO_TITLE, photo_section(changed))


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
    recall, _, alarms, steps = curves(score_views(views, settings))
    chosen = {
        DEFAULT_OPERATING_POINT: int(np.argmax(recall - alarms)),
        "recall_95": int(np.argmax(recall >= _RECALL)),
        "false_alarms_10": last(100 * alarms <= _FALSE_ALARMS, 0),
    }
    lines = halfway(steps)
    return {
        name: PhotoPoint(float(lines[at]), round(float(recall[at]), 4), round(100 * float(alarms[at]), 2))
        for name, at in chosen.items()
    }
