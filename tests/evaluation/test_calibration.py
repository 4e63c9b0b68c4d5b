"""Operating points reach what they are called, and the temperature that was lost is found again."""

from __future__ import annotations

import numpy as np
import pytest

from builders.labelled import make_scored
from crackbatch.evaluation.calibration import choose_operating_points, fit_temperature
from crackbatch.evaluation.metrics import Scored, confusion
from crackbatch.models.bundle import calibrated


def test_operating_points_reach_what_they_are_called() -> None:
    scored = make_scored(4000)
    points = choose_operating_points(scored.probabilities, scored.labels)
    for name, point in points.items():
        hits, false, missed, right = confusion(scored, point.threshold)
        assert point.recall == pytest.approx(hits / (hits + missed), abs=1e-4), name
        assert point.precision == pytest.approx(hits / (hits + false), abs=1e-4), name
        assert point.false_alarm_rate == pytest.approx(false / (false + right), abs=1e-4), name
    assert points["recall_99"].recall >= 0.99
    assert points["precision_95"].precision >= 0.95
    assert points["false_alarms_1pct"].false_alarm_rate <= 0.01
    balanced = points["balanced"].recall - points["balanced"].false_alarm_rate
    assert all(balanced >= point.recall - point.false_alarm_rate for point in points.values())


@pytest.mark.parametrize("above", [np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(1))])
def test_an_operating_point_holds_also_between_neighbouring_numbers(above: np.float32) -> None:
    below = np.nextafter(above, np.float32(0))
    scored = Scored(np.array([0.9, above, below, 0.1], np.float32), np.array([1, 1, 0, 0]), np.arange(4))
    for name, point in choose_operating_points(scored.probabilities, scored.labels).items():
        hits, false, missed, right = confusion(scored, point.threshold)
        assert (point.recall, point.false_alarm_rate) == (hits / (hits + missed), false / (false + right)), name


@pytest.mark.parametrize("answers", [[0, 0], [1, 1], [0, 1]])
def test_operating_points_of_the_fewest_images_are_thresholds(answers: list[int]) -> None:
    points = choose_operating_points(np.array([0.5, 0.5], np.float32), np.array(answers))
    assert all(0 <= point.threshold <= 1 for point in points.values())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_lost_is_found_again(temperature: float) -> None:
    random = np.random.default_rng(0)
    true = random.normal(0, 2, 50_000)
    labels = (random.random(len(true)) < calibrated(true, 1)).astype(np.int64)
    assert fit_temperature(true * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_without_a_wrong_image_the_temperature_stays() -> None:
    logits = np.array([-3.0, -1.0, 0.5, 4.0])
    assert fit_temperature(logits, (logits > 0).astype(np.int64)) == 1.0
