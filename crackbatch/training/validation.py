"""What a training learns from its validation split at its end.

The temperature and the operating points of the model, and whether it is better than the model that the training began
with, and than guessing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from crackbatch.evaluation.calibration import FEW_ERRORS, choose_operating_points, fit_temperature, num_errors
from crackbatch.evaluation.metrics import Scored, gain, measure, without_nan
from crackbatch.models.bundle import Bundle, calibrated

Weighted = tuple[Bundle, bytes]


def validated(
    bundle: Bundle,
    weights: bytes,
    before: Weighted | None,
    score: Callable[[Bundle, bytes], np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
) -> Bundle:
    """Return the bundle with all that the validation split says of it.

    `score` gives the logits (images,) of the split for a model; `labels` and `groups` (images,) belong to it. `before`
    is the model that the training began with, if it was a whole model.
    """
    logits = score(bundle, weights)
    temperature = fit_temperature(logits, labels)
    after = Scored(calibrated(logits, temperature), labels, groups)
    found: dict[str, Any] = {"errors": num_errors(logits, labels), "roc_auc": asdict(measure(after, 0.5)["roc_auc"])}
    if before is not None:
        earlier = Scored(calibrated(score(*before), before[0].temperature), labels, groups)
        found["before"] = {
            "model_id": before[0].model_id,
            "roc_auc": asdict(measure(earlier, 0.5)["roc_auc"]),
            "gain": asdict(gain(earlier, after)),
        }
    return replace(
        bundle,
        temperature=temperature,
        operating_points=choose_operating_points(after.probabilities, labels),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        training={**bundle.training, "validation": without_nan(found)},
    )


def verdict(bundle: Bundle) -> list[str]:
    """Return what the validation split said, in sentences; models of older versions have no such figures."""
    if (found := bundle.training.get("validation")) is None:
        return []
    auc, said = found["roc_auc"], []
    if (before := found.get("before")) is not None:
        low, high = before["gain"]["low"], before["gain"]["high"]
        word = "not clearly different from"
        if low is not None:
            word = "better than" if low > 0 else "worse than" if high < 0 else word
        said.append(
            f"on the validation images, ROC AUC {before['roc_auc']['value']:.3f} before ({before['model_id']}) and"
            f" {auc['value']:.3f} after: {word} the model that you began with"
        )
    least = auc["value"] if auc["low"] is None else auc["low"]
    if least <= 0.5:
        said.append(
            f"warning: on the validation images the model is no better than guessing (ROC AUC {auc['value']:.3f}); give"
            " more images or epochs, a larger --image-size, or begin from a trained model (--init)"
        )
    if (errors := found["errors"]) < FEW_ERRORS:
        said.append(
            f"warning: only {errors} validation images are misclassified, too few to calibrate"
            f"{'' if errors else ' (the temperature stays 1)'}; treat probabilities as approximate, or validate on"
            " more and harder images"
        )
    return said
