"""Labels of cells are read, and photographs are cut into views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import crackbatch
from builders.cells import write_cells
from crackbatch.errors import SourceError
from crackbatch.evaluation.views import COLUMNS, cell_logits, cut_views, read_cells
from crackbatch.models.photo import CrackMap


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
    left, right = cut_views([photo], [crack_map])
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
