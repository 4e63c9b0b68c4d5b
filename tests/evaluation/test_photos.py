"""Photographs with labelled cells measure a model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import crackbatch
from builders.cells import write_cells
from builders.models import SHIPPED
from builders.processes import run_main
from crackbatch.errors import BundleError, OptionError
from crackbatch.models.bundle import read_bundle


def test_the_figures_of_photographs_are_written_and_printed(tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "in", 4)
    done = run_main(["evaluate", "--photos", str(cells), "--out", str(tmp_path / "out")], "pass")
    assert done.returncode == 0, done.stderr
    assert "on 4 photographs, with 95 % intervals" in done.stdout
    assert "--threshold" not in done.stdout, "none was given"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["cells"]["all"]["cells"] == 4 * 42
    assert metrics["cells"]["all"]["cracked"] == 6
    assert metrics["cells"]["all"]["roc_auc"]["value"] > 0.95
    assert (metrics["views"]["all"]["views"], metrics["views"]["all"]["cracked"]) == (4, 2)
    at = metrics["views"]["all"]["at"]["balanced"]
    assert at["threshold"] == read_bundle().photo.operating_points["balanced"].threshold  # type: ignore[union-attr]
    assert at["recall"]["value"] == 1
    assert at["false_alarms_per_100_views"]["value"] == at["false_alarms_per_100_megapixels"]["value"] == 0
    photographs = pd.read_parquet(tmp_path / "out" / "photographs.parquet").set_index("file")
    assert photographs["label"].to_dict() == {
        "W_0.jpg": "no_crack", "D_1.jpg": "crack", "D_2.jpg": "no_crack", "W_3.jpg": "crack"
    }  # fmt: skip
    x, y, width, height = photographs.loc["D_1.jpg", ["box_x", "box_y", "box_w", "box_h"]].tolist()
    assert x < 3 * 256 < x + width  # the crack goes through these cells
    assert y < 2.5 * 256 < y + height


def test_a_model_that_is_not_calibrated_for_photographs_says_what_to_do(tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "in", 1)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in SHIPPED.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    description = json.loads((bundle / "model.json").read_text())
    del description["photo"]
    (bundle / "model.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match="is not calibrated for photographs, which --photos needs; calibrate it with"):
        crackbatch.evaluate(photos=cells, out=tmp_path / "out", model=bundle)
    for options in ({"view": "windows"}, {"maps": True}, {"ground_resolution": 0.5}, {"tile_size": 300}):
        with pytest.raises(BundleError, match=r"not calibrated for photographs, which --.* needs"):
            crackbatch.score(cells.parent, tmp_path / "out", model=bundle, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--photos names the photographs to measure on"):
        crackbatch.evaluate([str(cells.parent)], tmp_path / "out", photos=cells)
    summary = crackbatch.score(cells.parent, tmp_path / "out", model=bundle, engine="local")
    assert (summary.images, summary.photographs) == (1, 0)
