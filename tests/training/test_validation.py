"""At its end a training says whether the model is better than before, and than guessing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from crackbatch.models.bundle import Bundle, read_bundle
from crackbatch.training.validation import validated, verdict

LABELS = np.tile([1, 0], 300)
GROUPS = np.arange(600) // 10


def logits(skill: float, seed: int = 0) -> np.ndarray:
    """Logits that tell cracks apart the better, the higher the skill is; 0 is guessing."""
    return (np.random.default_rng(seed).normal(size=600) + skill * (2 * LABELS - 1)).astype(np.float32)


def trained(skill: float, before: float | None = None) -> Bundle:
    shipped = replace(read_bundle(), training={})
    earlier = None if before is None else (replace(shipped, name="earlier"), b"")
    answers = {shipped.name: logits(skill), "earlier": logits(before or 0.0, seed=1)}
    return validated(shipped, b"weights", earlier, lambda bundle, _: answers[bundle.name], LABELS, GROUPS)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [(0.5, 1.5, "better than"), (1.5, 0.5, "worse than"), (1.0, 1.0, "not clearly different from")],
)
def test_a_training_says_whether_it_made_the_model_better(before: float, after: float, word: str) -> None:
    (said,) = verdict(trained(after, before))
    assert said.startswith("on the validation images, ROC AUC 0.")
    assert "before (earlier@" in said
    assert said.endswith(f"{word} the model that you began with")


def test_a_model_that_only_guesses_is_said_to() -> None:
    (said,) = verdict(trained(0.0))
    assert said.startswith("warning: on the validation images the model is no better than guessing (ROC AUC 0.")
    assert verdict(trained(1.0)) == []


def test_few_errors_are_too_few_to_calibrate() -> None:
    (said,) = verdict(trained(20.0))
    assert said.startswith("warning: only 0 validation images are misclassified, too few to calibrate (the temperature")


def test_the_figures_are_written_as_json_also_with_one_photo() -> None:
    bundle = validated(
        replace(read_bundle(), training={}), b"weights", None, lambda *_: logits(1.0), LABELS, np.zeros(600, int)
    )
    assert json.loads(json.dumps(bundle.training, allow_nan=False))["validation"]["roc_auc"]["low"] is None
    assert verdict(bundle) == []
