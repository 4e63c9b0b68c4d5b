"""Images that do not fit into memory are streamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.trainings import SMALL, weights
from crackbatch import train
from crackbatch.models.bundle import read_bundle


def test_images_that_do_not_fit_into_memory_are_streamed_and_train_alike(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crackbatch.training.batches.fits_memory", lambda *_: False)
    monkeypatch.setattr("crackbatch.datasets.pixels.fits_memory", lambda *_: False)
    options = {**SMALL, "epochs": 2}
    results = [train(photos, str(tmp_path / name), workers=0, **options) for name in "ab"]
    assert "do not fit in memory" in capfd.readouterr().err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert read_bundle(str(tmp_path / "a")).temperature == read_bundle(str(tmp_path / "b")).temperature
    assert all(result.trained and len(result.history) == 2 for result in results)
