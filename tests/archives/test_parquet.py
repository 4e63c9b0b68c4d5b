"""Images in a column of a Parquet file are found, a few at a time in memory, and not mixed up."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.plans import contents, plan_of_archive
from crackbatch.errors import SourceError
from crackbatch.sources.fetch import fetch


@pytest.mark.parametrize("layout", ["bytes", "image-struct", "image-binary", "image-view", "image-categories"])
def test_parquet_with_an_image_column(tmp_path: Path, tiles: dict[str, bytes], layout: str) -> None:
    data = list(tiles.values())
    column: pa.Array = pa.array(data, pa.binary_view() if layout == "image-view" else pa.binary())
    if layout == "image-struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": item, "path": name} for name, item in tiles.items()], kind)
    if layout == "image-categories":
        column = column.dictionary_encode()
    name = "bytes" if layout == "bytes" else "image"
    pq.write_table(pa.table({"label": [1] * len(data), name: column}), tmp_path / "a.parquet", row_group_size=5)
    assert list(contents(plan_of_archive(tmp_path / "a.parquet")).values()) == data


def test_a_parquet_group_with_fewer_rows_than_its_footer_says_mixes_nothing_up(tmp_path: Path) -> None:
    data = [b"image %03d" % index for index in range(200)]
    pq.write_table(pa.table({"bytes": data}), tmp_path / "a.parquet", row_group_size=100)
    plan = plan_of_archive(tmp_path / "a.parquet")
    # As a footer that counts too many rows would have it planned: rows 100 to 109 are said to be in group 0.
    groups = [0 if index < 110 else 1 for index in range(200)]
    table = plan.table.set_column(plan.table.column_names.index("row_group"), "row_group", pa.array(groups, pa.int32()))
    rows = [row for block in fetch(table) for row in block.to_pylist()]
    assert len(rows) == 200
    for index, row in enumerate(rows):
        assert row["bytes"] in (data[index], None)
    assert [row["status"] for row in rows[100:110]] == ["corrupt"] * 10
    assert [row["bytes"] for row in rows[110:]] == data[110:]


@pytest.mark.parametrize("layout", ["bytes", "struct"])
def test_large_cells_of_a_parquet_file_are_not_all_in_memory_at_once(tmp_path: Path, layout: str) -> None:
    data = [os.urandom(8 << 20) for _ in range(24)]
    column = pa.array(data if layout == "bytes" else [{"bytes": item, "path": "x"} for item in data])
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}  # a page for each cell
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", **options)
    plan, before, pool = plan_of_archive(tmp_path / "a.parquet"), pa.default_memory_pool(), pa.system_memory_pool()
    del column
    pa.set_memory_pool(pool)
    try:
        blocks = fetch(plan.table)
        assert [row["bytes"] for block in blocks for row in block.to_pylist()] == data
        assert pool.max_memory() < 150 << 20
    finally:
        pa.set_memory_pool(before)


def test_a_struct_whose_bytes_are_no_bytes_is_no_image_column(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.int64()), ("path", pa.string())])
    table = pa.table({"file": pa.array([{"bytes": 300_000_000, "path": "x"}], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="no images in"):
        plan_of_archive(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"url": ["u"], "key": ["k"], "jpg": [b"1"]}, "jpg"),
        ({"image_bytes": [b"1"], "label": [1]}, "image_bytes"),
        ({"content": [b"1"], "name": ["a"]}, "content"),
        ({"geometry": [b"2"], "image.data": [b"1"]}, "image.data"),
        ({"thumb": [b"2"], "img": [{"bytes": b"1", "path": "a.jpg"}]}, "img"),
        ({"jpg": [b"2"], "image": [b"1"]}, None),
    ],
)
def test_images_in_a_column_of_another_name_are_found_and_the_name_is_said(
    columns: dict, taken: str | None, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    plan = plan_of_archive(tmp_path / "a.parquet")
    assert list(contents(plan).values()) == [b"1"]
    expected = [f"{tmp_path}/a.parquet: the images are read from its column {taken}"] if taken else []
    assert plan.listing.notes == expected


def test_columns_of_which_any_may_hold_the_images_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"any of its columns left, right may hold the images: rename one to image"):
        plan_of_archive(tmp_path / "a.parquet")
