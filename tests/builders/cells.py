"""Photographs with a label for each cell."""

from __future__ import annotations

import csv
from pathlib import Path

from builders.pictures import draw_photo
from crackbatch.evaluation.views import COLUMNS


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
