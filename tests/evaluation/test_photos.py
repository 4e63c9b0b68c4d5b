"""Photographs with labelled cells measure a model, and calibrate how it judges photographs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import crackbatch
from builders.models import SHIPPED
from builders.pictures import draw_photo
from builders.processes import run_main
from crackbatch.errors import BundleError, OptionError, SourceError
from crackbatch.evaluation.views import cell_logits, cut_views, read_cells
from crackbatch.models.bundle import read_bundle
from crackbatch.models.photo import CrackMap

COLUMNS = ["file", "row", "col", "x", "y", "size", "cracked"]


def write_cells(folder: Path, num_photos: int, views: int = 1) -> Path:
    """Photographs of one view or more, 7 rows by 6 columns each; every second has a crack in the first view."""
    folder.mkdir()
    lines = []
    for number in range(num_photos):
        cracked = (1, 2, 3) if number % 2 else ()
        name = f"{'DW'[number % 3 == 0]}_{number}.jpg"
        draw_photo(6 * views, 7, cracked, seed=number).save(folder / name, quality=92)
        lines += [
            [name, row, column, 256 * column, 256 * row, 256, int(row == 2 and column in cracked)]
            for row in range(7)
            for column in range(6 * views)
        ]
    with open(folder / "cells.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *lines])
    return folder / "cells.csv"


def test_a_model_is_calibrated_on_views_and_used_with_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = write_cells(tmp_path / "in", 6)
    with pytest.raises(SourceError, match=r"gives 3 cracked and 3 sound views; at least 20 of each"):
        crackbatch.calibrate(cells, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr("crackbatch.evaluation.photos._FEW", 3)
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


def test_the_figures_of_photographs_are_written_and_printed(tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "in", 4)
    done = run_main(["evaluate", "--photos", str(cells), "--out", str(tmp_path / "out")], "pass")
    assert done.returncode == 0, done.stderr
    assert "on 4 photographs, with 95 % intervals" in done.stdout
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
    assert photographs.loc["D_1.jpg", ["box_x", "box_y"]].tolist() <= [256, 640]


def test_cells_are_measured_where_they_lie_and_views_hold_only_their_own_windows(tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "in", 2, views=2)
    (photo, _) = read_cells(str(cells))  # by name: D_1, which has a crack, and W_0
    rows, columns = 7 * 7 - 6, 12 * 7 - 6
    logits = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    step = 256 / 7
    crack_map = CrackMap(logits, 3072, 1792, (step, step), (256.0, 256.0))
    found = cell_logits(photo, crack_map).reshape(7, 12)
    for row, column in ((0, 0), (3, 5), (6, 11)):
        around = logits[max(0, 7 * row - 1) : 7 * row + 2, max(0, 7 * column - 1) : 7 * column + 2]
        assert found[row, column] == around.max()
    left, right = cut_views(photo, crack_map)
    assert (left.is_cracked, right.is_cracked) == (True, False)
    assert np.array_equal(left.crack_map.logits, logits[:, :36])
    assert np.array_equal(right.crack_map.logits, logits[:, 42:])
    assert left.megapixels == pytest.approx(6 * 7 * 0.065536)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,row\na,1\n", "lacks the columns col, x, y, size, cracked"),
        (",".join(COLUMNS) + "\n", "has no cells"),
        (",".join(COLUMNS) + "\na.jpg,0,0,0,0,256,yes\n", "line 2: row, col, x, y, size and cracked must be numbers"),
        (",".join(COLUMNS) + "\na.jpg,0,0,0,0,256,2\n", "line 2: cracked must be 0 or 1, got 2"),
        (",".join(COLUMNS) + "\na.jpg,0,0,0,0,256,1\n", "a.jpg cannot be read"),
    ],
)
def test_labels_that_cannot_be_used_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        crackbatch.evaluate(photos=tmp_path / "cells.csv", out=tmp_path / "out")
    with pytest.raises(SourceError, match="does not exist"):
        crackbatch.evaluate(photos=tmp_path / "none.csv", out=tmp_path / "out")


def test_a_model_that_is_not_calibrated_for_photographs_says_what_to_do(tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "in", 1)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in SHIPPED.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    description = json.loads((bundle / "model.json").read_text())
    del description["photo"]
    (bundle / "model.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match="is not calibrated for photographs; do so with `crackbatch calibrate`"):
        crackbatch.evaluate(photos=cells, out=tmp_path / "out", model=bundle)
    for options in ({"view": "windows"}, {"maps": True}, {"ground_resolution": 0.5}, {"tile_size": 300}):
        with pytest.raises(BundleError, match=r"not calibrated for photographs, which --.* needs"):
            crackbatch.score(cells.parent, tmp_path / "out", model=bundle, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--photos names the photographs to measure on"):
        crackbatch.evaluate([str(cells.parent)], tmp_path / "out", photos=cells)
    summary = crackbatch.score(cells.parent, tmp_path / "out", model=bundle, engine="local")
    assert (summary.images, summary.photographs) == (1, 0)
