"""Metrics of predicted probabilities, with 95 % intervals by bootstrap over groups.

Tiles of one photo are alike, so the bootstrap draws photos, not tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = (
    "accuracy", "balanced_accuracy", "precision", "recall", "f1", "mcc", "average_precision", "roc_auc", "brier", "ece",
)  # fmt: skip
NUM_BINS = 15
ALL = "all"
_REPEATS = 1000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval. NaN if undefined: with one class only, say, or the interval of one group only."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """Images with their probabilities (images,), labels (images,) 0 or 1, and groups (images,) of any type."""

    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def where(self, mask: np.ndarray) -> Scored:
        """Return the images that a boolean mask (images,) selects."""
        return Scored(self.probabilities[mask], self.labels[mask], self.groups[mask])


def each_and_all(names: np.ndarray) -> dict[str, np.ndarray]:
    """Return a mask (images,) for each name in `names` (images,), and if there are several, one for `ALL` of them."""
    masks = {str(name): names == name for name in sorted(set(names.tolist()))}
    return masks if len(masks) == 1 else {**masks, ALL: np.ones(len(names), bool)}


def measure(scored: Scored, threshold: float, repeats: int = _REPEATS, seed: int = 0) -> dict[str, Metric]:
    """Return every metric by its name, with an interval; precision, recall and similar metrics are at the threshold.

    With only one group there is no interval, because nothing shows how much another group would differ.
    """
    ranked = _Ranked(scored, threshold)
    values = ranked.metrics(np.ones(len(scored.labels)))
    names, codes = np.unique(scored.groups, return_inverse=True)
    random = np.random.default_rng(seed)
    drawn = np.array(
        [
            list(ranked.metrics(random.multinomial(len(names), np.full(len(names), 1 / len(names)))[codes]).values())
            for _ in range(repeats if len(names) > 1 else 0)
        ]
    ).reshape(-1, len(NAMES))
    with np.errstate(all="ignore"):
        bounds = [
            np.percentile(column[np.isfinite(column)], _INTERVAL) if np.isfinite(column).any() else (np.nan, np.nan)
            for column in drawn.T
        ]
    return {
        name: Metric(value, float(low), float(high))
        for (name, value), (low, high) in zip(values.items(), bounds, strict=True)
    }


def gain(before: Scored, after: Scored, name: str = "roc_auc", repeats: int = _REPEATS, seed: int = 0) -> Metric:
    """Return how much higher a metric is for the same images with other probabilities, with a paired interval."""
    ranked = [_Ranked(scored, 0.5) for scored in (before, after)]
    place = NAMES.index(name)

    def difference(weights: np.ndarray) -> float:
        first, second = (list(one.metrics(weights).values())[place] for one in ranked)
        return second - first

    names, codes = np.unique(after.groups, return_inverse=True)
    random = np.random.default_rng(seed)
    shares = np.full(len(names), 1 / len(names))
    drawn = np.array([difference(random.multinomial(len(names), shares)[codes]) for _ in range(repeats)])
    drawn = drawn[np.isfinite(drawn)] if len(names) > 1 else drawn[:0]
    low, high = np.percentile(drawn, _INTERVAL) if len(drawn) else (np.nan, np.nan)
    return Metric(difference(np.ones(len(codes))), float(low), float(high))


def without_nan(value: Any) -> Any:
    """Return the same value with None for numbers that are undefined, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def confusion(scored: Scored, threshold: float) -> tuple[int, int, int, int]:
    """Return (hits, false alarms, misses, correct rejections) at a threshold."""
    alarm, crack = scored.probabilities >= np.float32(threshold), scored.labels == 1
    hits, false, missed = (int(part.sum()) for part in (alarm & crack, alarm & ~crack, ~alarm & crack))
    return hits, false, missed, len(alarm) - hits - false - missed


def precision_at(prevalence: float, recall: float, false_alarm_rate: float) -> float:
    """Return the precision if a share `prevalence` of the images is cracked, by Bayes' rule; NaN without any alarm."""
    hits, alarms = prevalence * recall, (1 - prevalence) * false_alarm_rate
    return hits / (hits + alarms) if hits + alarms > 0 else float("nan")


def reliability(scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (mean probability, share of cracks, images) of each of 15 bins of equal width; NaN if a bin is empty."""
    index = _bins(scored.probabilities)
    count = np.bincount(index, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        said = np.bincount(index, scored.probabilities, NUM_BINS) / count
        was = np.bincount(index, scored.labels, NUM_BINS) / count
    return said, was, count


def curves(scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (recall, precision, false alarm rate, threshold) at each distinct probability, from the highest down."""
    order = np.argsort(-scored.probabilities, kind="stable")
    ranked, cracks = scored.probabilities[order].astype(np.float64), scored.labels[order] == 1
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal probabilities are one step
    hits, false = np.cumsum(cracks)[ends], np.cumsum(~cracks)[ends]
    return hits / max(hits[-1], 1), hits / (hits + false), false / max(false[-1], 1), ranked[ends]


def _bins(probabilities: np.ndarray) -> np.ndarray:
    index: np.ndarray = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    return index


class _Ranked:
    """Images sorted by probability once, so that the metrics of each bootstrap sample are only weighted sums."""

    def __init__(self, scored: Scored, threshold: float) -> None:
        order = np.argsort(-scored.probabilities, kind="stable")
        self._order = order
        self._probabilities = scored.probabilities[order].astype(np.float64)
        self._labels = scored.labels[order].astype(np.float64)
        self._alarms = scored.probabilities[order] >= np.float32(threshold)
        # Equal probabilities are one step of the curves.
        self._steps = np.append(np.flatnonzero(np.diff(self._probabilities)), len(order) - 1)
        self._bins = _bins(self._probabilities)

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        weight = weights[self._order].astype(np.float64)
        with np.errstate(all="ignore"):
            return dict(
                zip(NAMES, [*self._at_threshold(weight), *self._by_rank(weight), *self._errors(weight)], strict=True)
            )

    def _at_threshold(self, weight: np.ndarray) -> list[float]:
        crack = weight * self._labels
        hits, alarms = float(np.sum(crack[self._alarms])), float(np.sum(weight[self._alarms]))
        cracks, total = float(crack.sum()), float(weight.sum())
        false, missed = alarms - hits, cracks - hits
        right = total - hits - false - missed
        nan = float("nan")
        recall = hits / cracks if cracks else nan
        specificity = right / (total - cracks) if total > cracks else nan
        precision = hits / alarms if alarms else nan
        f1 = 2 * hits / (2 * hits + false + missed) if cracks or alarms else nan
        spread = np.sqrt(alarms * cracks * (total - cracks) * (total - alarms))
        mcc = float((hits * right - false * missed) / spread) if spread else nan  # Matthews 1975
        return [(hits + right) / total, (recall + specificity) / 2, precision, recall, f1, mcc]

    def _by_rank(self, weight: np.ndarray) -> list[float]:
        """Average precision (sum of precision times gain in recall) and the area under the ROC curve (trapezoids)."""
        crack = weight * self._labels
        hits, seen = np.cumsum(crack)[self._steps], np.cumsum(weight)[self._steps]
        cracks, sound = hits[-1], seen[-1] - hits[-1]
        if cracks == 0 or sound == 0:
            return [float("nan"), float("nan")]
        gained = np.diff(hits, prepend=0) / cracks
        average_precision = float(np.sum(gained * np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)))
        false = (seen - hits) / sound
        area = float(np.trapezoid(np.concatenate([[0], hits / cracks]), np.concatenate([[0], false])))
        return [average_precision, area]

    def _errors(self, weight: np.ndarray) -> list[float]:
        """Brier score and expected calibration error (Naeini et al. 2015, for the probability of a crack)."""
        total = weight.sum()
        brier = float(np.sum(weight * (self._probabilities - self._labels) ** 2) / total)
        gap = np.bincount(self._bins, weight * (self._probabilities - self._labels), NUM_BINS)
        return [brier, float(np.abs(gap).sum() / total)]
