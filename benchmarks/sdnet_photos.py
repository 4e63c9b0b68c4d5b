"""Puts photographs of SDNET2018 together again from their tiles, with a label for each cell.

    python benchmarks/sdnet_photos.py sdnet.tar sdnet-rest.tar --out photos [--split split.parquet --part validation]

Tile n of a photograph lies at row (n - 1) // 18 and column (n - 1) % 18. Only photographs of which every tile is in the
archives are written, and `cells.csv`, as `crackbatch calibrate` and `crackbatch evaluate --photos` read it. With a
split, only the photographs of one part of it are written.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS, SIZE = 18, 256
ROWS = {"D": 14, "P": 13, "W": 14}  # of the photographs of decks, pavements and walls
MIN_SHARE = 0.98  # wall 7107 has 249 of 252 tiles in the original set; the others are left grey and without a label
GROUP = re.compile(r"/([DPW])/(\d+)$")
TILE = re.compile(r"([DPW])/([CU])[DPW]/(\d+)-(\d+)(?:_\d)?\.jpg$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--part", default="validation")
    arguments = parser.parse_args()
    wanted = photos_of(arguments.split, arguments.part) if arguments.split else None
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "cells.csv", "w", newline="") as file:
        cells = csv.writer(file)
        cells.writerow(["file", "row", "col", "x", "y", "size", "cracked"])
        for name, tiles in sorted(read_tiles(arguments.tars).items()):
            rows = ROWS[name[0]]
            if len(tiles) < MIN_SHARE * rows * COLUMNS or (wanted is not None and name not in wanted):
                continue
            picture = np.full((rows * SIZE, COLUMNS * SIZE, 3), 128, np.uint8)
            for (row, column), (is_cracked, data) in sorted(tiles.items()):
                y, x = row * SIZE, column * SIZE
                picture[y : y + SIZE, x : x + SIZE] = PIL.Image.open(io.BytesIO(data)).convert("RGB")
                cells.writerow([f"{name}.jpg", row, column, x, y, SIZE, int(is_cracked)])
            PIL.Image.fromarray(picture).save(arguments.out / f"{name}.jpg", quality=95)


def photos_of(split: Path, part: str) -> set[str]:
    """Return the names of the photographs, such as D_7008, that are in one part of a split."""
    table = pq.read_table(split, columns=["group", "split"])
    groups = set(table.filter(pc.equal(table.column("split"), part)).column("group").to_pylist())
    return {f"{found[1]}_{found[2]}" for group in groups if (found := GROUP.search(group))}


def read_tiles(tars: list[str]) -> dict[str, dict[tuple[int, int], tuple[bool, bytes]]]:
    """Return the tiles of each photograph by their place (row, column): whether it is cracked, and its JPEG."""
    tiles: dict[str, dict[tuple[int, int], tuple[bool, bytes]]] = defaultdict(dict)
    for path in tars:
        with tarfile.open(path) as archive:
            for member in archive:
                if (found := TILE.search(member.name)) and (file := archive.extractfile(member)):
                    place = divmod(int(found[4]) - 1, COLUMNS)
                    if place[0] < ROWS[found[1]]:
                        tiles[f"{found[1]}_{found[3]}"][place] = (found[2] == "C", file.read())
    return tiles


if __name__ == "__main__":
    main()
