"""What is chosen on the validation split, and on it alone: the temperature and the operating points."""

from __future__ import annotations

import numpy as np

from crackbatch.evaluation.metrics import Scored, curves
from crackbatch.models.bundle import OperatingPoint

FEW_ERRORS = 20
_RECALL, _PRECISION, _FALSE_ALARMS = 0.99, 0.95, 0.01


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes probabilities of the logits fit best: the least log loss (Guo et al. 2017, 4.2).

    It is 1 where no image is on the wrong side: there the loss falls with the temperature for ever.
    """
    from scipy.optimize import minimize_scalar

    if not num_errors(logits, labels):
        return 1.0
    signs = 2.0 * labels - 1

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs * logits.astype(np.float64) / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def num_errors(logits: np.ndarray, labels: np.ndarray) -> int:
    """Images on the wrong side of 0.5: what a temperature is fitted on, in the end."""
    return int(((logits > 0) != (labels == 1)).sum())


def choose_operating_points(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, OperatingPoint]:
    """Named thresholds and what they reached on these images.

    `balanced` has the best mean of recall and specificity, `recall_99` finds 99 % of the cracks, `precision_95` is
    right in 95 % of its alarms, `false_alarms_1pct` is raised by 1 % of the sound images. Where a share cannot be
    reached, the point is the nearest there is, and says what it reached.
    """
    recall, precision, alarms, steps = curves(Scored(probabilities, labels, labels))
    chosen = {
        "balanced": int(np.argmax(recall - alarms)),
        "recall_99": int(np.argmax(recall >= _RECALL)),
        "precision_95": _last(precision >= _PRECISION, int(np.argmax(precision))),
        "false_alarms_1pct": _last(alarms <= _FALSE_ALARMS, 0),
    }
    lines = _lines(steps)
    return {
        name: OperatingPoint(
            threshold=float(lines[at]),
            precision=round(float(precision[at]), 4),
            recall=round(float(recall[at]), 4),
            false_alarm_rate=round(float(alarms[at]), 4),
        )
        for name, at in chosen.items()
    }


def _lines(steps: np.ndarray) -> np.ndarray:
    """(steps,) float32, as thresholds are applied: half-way to the step below, or the step where nothing is between."""
    below = np.append(steps[1:], 0.0)
    middle = ((steps + below) / 2).astype(np.float32)
    return np.where(middle > below, middle, steps.astype(np.float32))


def _last(reached: np.ndarray, otherwise: int) -> int:
    """The last place at which a condition holds."""
    places = np.flatnonzero(reached)
    return int(places[-1]) if len(places) else otherwise
