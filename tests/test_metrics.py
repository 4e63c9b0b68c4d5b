"""Our weighted metrics are scikit-learn's, and thresholds reach what their names promise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.metrics as reference

from crackbatch.evaluation.calibration import choose_operating_points, fit_temperature
from crackbatch.evaluation.metrics import Scored, confusion, measure, precision_at
from crackbatch.models.model import calibrated


def make_scored(num: int = 600, seed: int = 0, ties: bool = False) -> Scored:
    random = np.random.default_rng(seed)
    labels = (random.random(num) < 0.3).astype(np.int64)
    probabilities = np.clip(0.35 * labels + random.normal(0.3, 0.2, num), 0, 1)
    if ties:
        probabilities = np.round(probabilities, 1)
    return Scored(probabilities.astype(np.float32), labels, random.integers(0, 40, num).astype(str))


@pytest.mark.parametrize("ties", [False, True])
def test_every_metric_is_scikit_learns(ties: bool) -> None:
    scored = make_scored(ties=ties)
    labels, said = scored.labels, scored.probabilities >= np.float32(0.5)
    expected = {
        "accuracy": reference.accuracy_score(labels, said),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, said),
        "precision": reference.precision_score(labels, said),
        "recall": reference.recall_score(labels, said),
        "f1": reference.f1_score(labels, said),
        "mcc": reference.matthews_corrcoef(labels, said),
        "average_precision": reference.average_precision_score(labels, scored.probabilities),
        "roc_auc": reference.roc_auc_score(labels, scored.probabilities),
        "brier": reference.brier_score_loss(labels, scored.probabilities),
    }
    found = measure(scored, 0.5, repeats=10)
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-6)


def test_confusion_counts_every_image_once() -> None:
    scored = make_scored()
    matrix = reference.confusion_matrix(scored.labels, scored.probabilities >= np.float32(0.4))
    hits, false, missed, right = confusion(scored, 0.4)
    assert [[right, false], [missed, hits]] == matrix.tolist()


def test_an_interval_holds_the_value_and_widens_where_groups_are_few() -> None:
    scored = make_scored()
    few = Scored(scored.probabilities, scored.labels, np.array([str(int(group) // 10) for group in scored.groups]))
    alike = make_scored(60)
    repeated = Scored(*(np.repeat(values, 10) for values in (alike.probabilities, alike.labels, np.arange(60))))
    naive = Scored(repeated.probabilities, repeated.labels, np.arange(600))
    for name, metric in measure(few, 0.5).items():
        assert metric.low <= metric.value <= metric.high or name == "ece"  # resampling can only add to the ECE
    honest, optimistic = (measure(which, 0.5)["recall"] for which in (repeated, naive))
    assert honest.high - honest.low > 2 * (optimistic.high - optimistic.low)


def test_one_group_alone_has_no_interval() -> None:
    scored = make_scored()
    for name, metric in measure(Scored(scored.probabilities, scored.labels, np.full(600, "a")), 0.5).items():
        assert np.isfinite(metric.value), name
        assert np.isnan([metric.low, metric.high]).all(), name


def test_what_is_not_defined_is_nan_and_not_a_number() -> None:
    scored = make_scored()
    sound = scored.where(scored.labels == 0)
    found = measure(sound, 0.5, repeats=10)
    assert np.isnan(found["roc_auc"].value)
    assert np.isnan(found["recall"].value)
    assert found["accuracy"].value == pytest.approx(1 - confusion(sound, 0.5)[1] / len(sound.labels))


def test_perfect_calibration_has_no_calibration_error() -> None:
    probabilities = np.repeat(np.array([0.1, 0.5, 0.9], np.float32), 1000)
    labels = np.concatenate([np.arange(1000) < share for share in (100, 500, 900)]).astype(np.int64)
    found = measure(Scored(probabilities, labels, np.arange(3000)), 0.5, repeats=2)
    assert found["ece"].value == pytest.approx(0, abs=1e-6)


def test_precision_at_a_prevalence_is_that_of_a_sample_with_it() -> None:
    scored = make_scored(5000)
    hits, false, missed, right = confusion(scored, 0.5)
    share = (hits + missed) / 5000
    assert precision_at(share, hits / (hits + missed), false / (false + right)) == pytest.approx(hits / (hits + false))


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


def test_the_most_extreme_logits_have_probabilities_and_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrated(np.array([-1e30, -800, 0, 800, 1e30], np.float32), 0.5).tolist() == [0, 0, 0.5, 1, 1]


def test_without_a_wrong_image_the_temperature_stays() -> None:
    logits = np.array([-3.0, -1.0, 0.5, 4.0])
    assert fit_temperature(logits, (logits > 0).astype(np.int64)) == 1.0
