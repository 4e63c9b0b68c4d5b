"""Chooses the temperature and the operating points, both on the validation split alone."""

from __future__ import annotations

import numpy as np

from crackbatch.evaluation.metrics import Scored, curves
from crackbatch.models.bundle import Bundle, OperatingPoint, resolve, write_bundle
from crackbatch.models.card import FILE as CARD
from crackbatch.models.card import with_section
from crackbatch.models.seen import FILE as SEEN
from crackbatch.storage import atomic, locations, objects

FEW_ERRORS = 20
_RECALL, _PRECISION, _FALSE_ALARMS = 0.99, 0.95, 0.01


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that gives the lowest log loss (Guo et al. 2017, 4.2).

    It is 1 if no image is misclassified: the loss would then become lower with every lower temperature.
    """
    from scipy.optimize import minimize_scalar

    if not num_errors(logits, labels):
        return 1.0
    signs = 2.0 * labels - 1

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs * logits.astype(np.float64) / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def num_errors(logits: np.ndarray, labels: np.ndarray) -> int:
    """Return how many images are misclassified at 0.5. The fitted temperature depends mostly on these."""
    return int(((logits > 0) != (labels == 1)).sum())


def choose_operating_points(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, OperatingPoint]:
    """Return named thresholds with the metrics that they reach on these images.

    `balanced` has the best mean of recall and specificity. `recall_99` finds at least 99 % of the cracks. With
    `precision_95`, at least 95 % of the alarms are cracks. With `false_alarms_1pct`, at most 1 % of the sound images
    raise an alarm. If a target cannot be reached, the point is the nearest possible one, with the metrics it reached.
    """
    recall, precision, alarms, steps = curves(Scored(probabilities, labels, labels))
    chosen = {
        "balanced": int(np.argmax(recall - alarms)),
        "recall_99": int(np.argmax(recall >= _RECALL)),
        "precision_95": last(precision >= _PRECISION, int(np.argmax(precision))),
        "false_alarms_1pct": last(alarms <= _FALSE_ALARMS, 0),
    }
    lines = halfway(steps)
    return {
        name: OperatingPoint(
            threshold=float(lines[at]),
            precision=round(float(precision[at]), 4),
            recall=round(float(recall[at]), 4),
            false_alarm_rate=round(float(alarms[at]), 4),
        )
        for name, at in chosen.items()
    }


def write_calibrated(bundle: Bundle, source: str, weights: bytes, title: str, text: str) -> Bundle:
    """Write a bundle that was calibrated again, with the list of seen images and the card of the one at `source`.

    A section with a title (`## Site`) and a text says in the card what was done.
    """
    for name in (SEEN, CARD):
        try:
            data = objects.read_bytes(locations.join(resolve(source), name))
        except FileNotFoundError:
            continue
        if name == CARD:
            data = with_section(data.decode(), bundle, title, text).encode()
        atomic.write_whole(locations.join(bundle.location, name), data)
    return write_bundle(bundle, weights)


def halfway(steps: np.ndarray) -> np.ndarray:
    """Return thresholds (steps,) float32: halfway to the step below, or the step itself if nothing is between.

    Thresholds are applied as float32.
    """
    below = np.append(steps[1:], 0.0)
    middle = ((steps + below) / 2).astype(np.float32)
    return np.where(middle > below, middle, steps.astype(np.float32))


def last(reached: np.ndarray, otherwise: int) -> int:
    """Return the last index at which a condition holds, or `otherwise` if it never does."""
    places = np.flatnonzero(reached)
    return int(places[-1]) if len(places) else otherwise
