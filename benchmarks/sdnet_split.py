"""Draws the split of the shipped model: as `crackbatch train` draws it, with more whole photographs to validate on.

    python benchmarks/sdnet_split.py metu.zip 'sdnet*.tar' --out build/split

Photographs of which every tile is in the archives show how the model judges photographs. A third of them goes to the
validation split, so that `crackbatch calibrate` has photographs that the model was not trained on.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
from sdnet_photos import COLUMNS, MIN_SHARE, ROWS

from crackbatch.datasets.dataset import read_dataset, with_split
from crackbatch.datasets.split import write_split

PHOTO = re.compile(r"/([DPW])/(\d+)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = with_split(read_dataset(arguments.data, scratch=scratch))
    table = dataset.table
    groups, components = (table.column(name).to_pylist() for name in ("group", "component"))
    splits = table.column("split").to_pylist()
    rows = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    whole = defaultdict(list)
    for group, members in sorted(rows.items()):
        found = PHOTO.search(group)
        if found and len(members) >= MIN_SHARE * ROWS[found[1]] * COLUMNS and splits[members[0]] != "test":
            whole[found[1]].append(components[members[0]])
    chosen = {component for photos in whole.values() for component in photos[::3]}
    split = [
        "validation" if component in chosen else split for component, split in zip(components, splits, strict=True)
    ]
    table = table.set_column(table.column_names.index("split"), "split", pa.array(split))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_split(table, str(arguments.out / "split.parquet"))
    for name in ("train", "validation", "test"):
        photos = {group for group, of in zip(groups, split, strict=True) if of == name and PHOTO.search(group)}
        print(f"{name}: {split.count(name):,} tiles, {len(photos)} photographs of SDNET2018")
    moved = {group for group, component in zip(groups, components, strict=True) if component in chosen}
    print(f"whole photographs in validation: {', '.join(sorted(moved))}")


if __name__ == "__main__":
    main()
