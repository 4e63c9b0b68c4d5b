"""A model is calibrated on photographs with labelled cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import crackbatch
from builders.cells import write_cells
from builders.models import SHIPPED
from builders.processes import run_main
from crackbatch.errors import SourceError
from crackbatch.models.bundle import read_bundle


def test_a_model_is_calibrated_on_views_and_used_with_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = write_cells(tmp_path / "in", 6)
    with pytest.raises(SourceError, match=r"gives 3 cracked and 3 sound views; at least 20 of each"):
        crackbatch.calibrate(cells, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr("crackbatch.evaluation.photo_calibration._FEW", 3)
    bundle = crackbatch.calibrate(cells, tmp_path / "model", ground_resolution=0.5)
    assert bundle == read_bundle(str(tmp_path / "model"))
    photo, shipped = bundle.photo, read_bundle()
    assert photo is not None
    assert (photo.window, photo.mm_per_pixel, photo.width) == (256, 0.5, 1536)
    assert photo.calibration == {"photographs": 6, "views": 6, "cracked_views": 3, "megapixels": 16.5}
    assert set(photo.operating_points) == {"balanced", "recall_95", "false_alarms_10"}
    assert photo.operating_points["balanced"].recall == 1
    assert photo.operating_points["balanced"].false_alarms == 0
    assert bundle.weights_sha256 == shipped.weights_sha256
    assert bundle.model_id != shipped.model_id
    assert {path.name for path in (tmp_path / "model").iterdir()} == {path.name for path in SHIPPED.iterdir()}
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert card.count("## Photographs") == 1
    assert bundle.model_id in card
    assert shipped.model_id not in card
    assert "This was fitted on 6 views" in card
    done = run_main(
        ["score", str(cells.parent), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "model"),
         "--operating-point", "recall_95", "--limit", "2"], "pass",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "looked at 2 photographs in" in done.stdout
    table = crackbatch.read_predictions(tmp_path / "out")
    assert table["label"].tolist() == ["crack", "no_crack"]
    assert np.allclose(table["threshold"], photo.operating_points["recall_95"].threshold)
