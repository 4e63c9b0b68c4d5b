"""What was found in labelled data is said in lines that a person reads."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image

from builders.pictures import make_photos
from crackbatch.cli.demo import draw_tile
from crackbatch.datasets.dataset import read_dataset, with_given_split, with_split
from crackbatch.datasets.split import write_split


def test_a_given_split_that_cuts_photos_or_parts_near_duplicates_is_warned_of_in_one_line(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "deck")
    twin = folder / "D" / "CD" / "7001-99.jpg"  # of another photo, by its name
    PIL.Image.open(io.BytesIO(draw_tile(0, True))).save(twin, quality=70)
    location = str(tmp_path / "split.parquet")
    drawn = with_split(read_dataset([str(folder)]))
    write_split(drawn.table, location)
    assert with_given_split(read_dataset([str(folder)]), location).report.lines() == drawn.report.lines()
    assert drawn.report.lines() == ["1 sets of near-duplicates (2 images) are each kept together in the split"]

    table = drawn.table.to_pandas()
    others = {"train": "test", "validation": "train", "test": "train"}
    for moved, group in (("7001-99.jpg", "deck/D/7000"), ("7005-0.jpg", "deck/D/7005")):
        row = table["path"].str.endswith(moved)
        splits = [others[split] if here else split for split, here in zip(table["split"], row, strict=True)]
        write_split(drawn.table.set_column(drawn.table.column_names.index("split"), "split", [splits]), location)
        lines = with_given_split(read_dataset([str(folder)]), location).report.lines()
        assert lines[0] == "1 sets of near-duplicates (2 images) were found"
        assert lines[1].startswith(f"warning: 1 groups (made from photos named in paths), such as {group}, ")
        assert len(lines) == 2
