"""Our weighted metrics are scikit-learn's, and intervals say how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as reference

from builders.labelled import make_scored
from crackbatch.evaluation.metrics import Scored, confusion, measure, precision_at


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
