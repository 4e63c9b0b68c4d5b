"""Images in a column of a Parquet file are found, a few at a time in memory, and not mixed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.places import TESTS
from builders.plans import contents, plan_of_archive
from crackbatch.archives import cells
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
def test_large_cells_of_a_parquet_file_are_not_all_in_memory_at_once(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [os.urandom(8 << 20) for _ in range(24)]
    column = pa.array(data if layout == "bytes" else [{"bytes": item, "path": "x"} for item in data])
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}  # a page for each cell
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", **options)
    monkeypatch.setattr(cells, "_LEAST_MEMORY", 100 << 20)
    monkeypatch.setattr(cells, "_MOST_MEMORY", 100 << 20)
    monkeypatch.setattr(cells, "_LIBRARIES", 150 << 20)
    blocks = fetch(plan_of_archive(tmp_path / "a.parquet").table)
    assert [row["bytes"] for block in blocks for row in block.to_pylist()] == data


@pytest.mark.parametrize("layout", ["bytes", pytest.param("struct", marks=pytest.mark.slow)])
def test_a_parquet_file_that_unpacks_to_any_size_costs_only_its_own_rows(tmp_path: Path, layout: str) -> None:
    """One value of 20 MB in a dictionary of a few kilobytes that 40 rows share; a page of 300 MB; and good files."""
    (tmp_path / "in").mkdir()
    good = [b"image %d" % number for number in range(5)]
    for name, values in {"shared": [bytes(20 << 20)], "good": good, "huge": [bytes(300 << 20)]}.items():
        column: pa.Array = pa.array(values)
        if name == "shared":
            column = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), column)
        if layout == "struct":
            column = pa.StructArray.from_arrays([column], ["bytes"])
        options = {"compression": "zstd", "use_dictionary": name == "shared", "dictionary_pagesize_limit": 1 << 30}
        pq.write_table(pa.table({"image": column}), tmp_path / "in" / f"{name}.parquet", **options)
    code = f"""
import hashlib, json, resource
from builders.plans import plan_of
from crackbatch.archives import cells
from crackbatch.sources.fetch import fetch
cells._LEAST_MEMORY = cells._MOST_MEMORY = 256 << 20
resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, resource.RLIM_INFINITY))
for block in fetch(plan_of("{tmp_path}/in").table):
    for row in block.to_pylist():
        print(json.dumps([row["image_uri"], row["status"], row["error"], len(row["bytes"] or b"")]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[3] for row in read] == [len(item) for item in good] + [0] + [20 << 20] * 40
    assert {row[1] for row in read if "huge" in row[0]} <= {"crashed"}
    assert "needs more than 0.3 GB of memory" in read[5][2]


def test_null_cells_are_counted_and_missing_images_are_rows(tmp_path: Path) -> None:
    nulls = pa.table({"image": pa.array([None] * 3_000_000, pa.binary())})
    pq.write_table(nulls, tmp_path / "nulls.parquet", row_group_size=1_000_000)
    with pytest.raises(SourceError, match="found only 3,000,000 rows without an image"):
        plan_of_archive(tmp_path / "nulls.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": f"{number}.jpg"} for number in range(3)] + [None] * 5, kind)
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet", row_group_size=3)
    plan = plan_of_archive(tmp_path / "a.parquet")
    assert contents(plan) == {f"image/{number}": "missing" for number in range(3)}
    assert plan.listing.passed_over == {"rows without an image": 5}


def test_null_cells_of_which_the_footer_says_nothing_are_bounded(tmp_path: Path) -> None:
    nulls = pa.table({"image": pa.array([None] * 3_000_000, pa.binary())})
    pq.write_table(nulls, tmp_path / "a.parquet", write_statistics=False)
    plan = plan_of_archive(tmp_path / "a.parquet")
    assert plan.table.num_rows == 100_000
    assert "announces more than 100,000 images" in plan.listing.problems[0]


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


def test_cells_before_a_damaged_page_and_beside_odd_paths_are_read(tmp_path: Path) -> None:
    good = [os.urandom(20_000) for _ in range(100)]
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 200_000, "write_batch_size": 1}
    pq.write_table(pa.table({"image": good}), tmp_path / "a.parquet", **options)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = data.index(good[90])
    data[at - 400 : at] = os.urandom(400)
    (tmp_path / "a.parquet").write_bytes(data)
    rows = [row for block in fetch(plan_of_archive(tmp_path / "a.parquet").table) for row in block.to_pylist()]
    assert len(rows) == 100
    assert sum(row["bytes"] == cell for row, cell in zip(rows, good, strict=True)) >= 60
    paths = pa.array([b"a", b"\xe4\xf6", b"c"]).view(pa.string())
    column = pa.StructArray.from_arrays([pa.array([b"1", b"2", None]), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": column}), tmp_path / "b.parquet")
    assert contents(plan_of_archive(tmp_path / "b.parquet")) == {"image/0": b"1", "image/1": b"2", "image/2": "missing"}
