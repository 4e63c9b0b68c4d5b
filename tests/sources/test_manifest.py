"""A manifest says what is wrong with it, loses no line, and its columns are carried to its images."""

from __future__ import annotations

import os
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.archives import write_files, zip_with
from builders.credentials import KEY
from builders.faulty import Faults
from builders.plans import contents, fetch_all, plan_of, plan_of_archive
from builders.servers import WholeFiles, put, serving
from crackbatch.errors import RunError, SourceError
from crackbatch.images.formats import EXTENSIONS
from crackbatch.sources.manifest import Manifest, read_manifest
from crackbatch.sources.plan import make_plan
from crackbatch.sources.shards import read_shard, write_shards


def test_a_manifest_may_name_a_hard_link(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in", {"a.jpg": tiles["tile-00.jpg"], "c.jpg": tiles["tile-01.jpg"]})
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    subprocess.run(["tar", "-cf", "../hl.tar", "a.jpg", "b.jpg", "c.jpg"], cwd=folder, check=True)
    (tmp_path / "m.csv").write_text("image_uri\ntar://b.jpg::hl.tar\n")
    assert contents(plan_of_archive(tmp_path / "m.csv")) == {"b.jpg": tiles["tile-00.jpg"]}


@pytest.mark.parametrize(("fault", "message"), [("expired", "renew them and run again"), ("503", "; run again")])
@pytest.mark.parametrize("name", ["names.csv", "names.parquet"])
def test_a_manifest_whose_storage_fails_is_no_wrong_one(
    name: str, fault: str, message: str, s3: str, bucket: str, through: Callable[[Faults], None], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image_uri": ["a.jpg"]}), tmp_path / "names.parquet")
    (tmp_path / "names.csv").write_text("image_uri\na.jpg\n")
    put(s3, f"{bucket}/{name}", (tmp_path / name).read_bytes())
    through(Faults(expires_after=1) if fault == "expired" else Faults(kinds=("503",), share=1, method="GET"))
    with pytest.raises(RunError, match=rf"/{name}.*{message}"):
        make_plan([f"s3://inspections/{bucket}/{name}"], EXTENSIONS)


def manifest_of(path: Path, text: str) -> Manifest:
    path.write_bytes(text.encode())
    found = read_manifest(str(path))
    assert found is not None
    return found


def uris(found: Manifest) -> list[str]:
    return found.table["image_uri"].to_pylist()


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (['0.jpg,"north', "1.jpg,ok", '2.jpg,"south', "3.jpg,ok"], 2),
        (["0.jpg,ok", '1.jpg,"north', "2.jpg,ok"], 3),
        (['0.jpg,"two', 'lines"', '"1.jpg,ok', "2.jpg,ok"], 4),
        (['0.jpg,"the "old" pier"'], 2),
        (["0.jpg,ok", '1.jpg,"north', *(f"{number}.jpg,{'x' * 99}" for number in range(2, 20_000))], 3),
    ],
)
@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_is_not_closed_is_named_by_its_line(
    tmp_path: Path, lines: list[str], line: int, separator: str, end: str
) -> None:
    text = end.join(["image_uri,note", *lines, ""]).replace(",", separator)
    with pytest.raises(SourceError, match=rf"m\.csv, line {line}: .*quote") as raised:
        manifest_of(tmp_path / "m.csv", text)
    assert "\n" not in str(raised.value)


def test_quoted_cells_hold_line_breaks_separators_and_doubled_quotes(tmp_path: Path) -> None:
    found = manifest_of(tmp_path / "m.csv", 'image_uri,note\na.jpg,"north\n""old"", pier"\nb.jpg,5" pipe\n"c.jpg",\n')
    assert uris(found) == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.table["note"].to_pylist() == ['north\n"old", pier', '5" pipe', None]


@pytest.mark.parametrize("columns", [1, 40])
def test_a_line_may_be_long_but_not_without_end(tmp_path: Path, columns: int) -> None:
    header = ",".join(["image_uri", *(f"c{number}" for number in range(columns))])
    for letter in "xü":
        cells = [letter * (1_000_000 // columns)] * columns
        found = manifest_of(tmp_path / "m.csv", "\n".join([header, *[",".join(["a.jpg", *cells])] * 9]))
        assert uris(found) == ["a.jpg"] * 9
        assert found.table["c0"].to_pylist() == [cells[0]] * 9
    longer = ",".join(["b.jpg", *["x" * (9_000_000 // columns)] * columns])
    with pytest.raises(SourceError, match=r"m\.csv, line 3: .*1,048,576 characters") as raised:
        manifest_of(tmp_path / "m.csv", "\n".join([header, "a.jpg" + "," * columns, longer]))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image_uri,pier,pier", "two columns with the same name, 'pier'; rename one"),
        ("image_uri,pier,,", "two columns with the same name, which is empty; name them or remove them"),
    ],
)
def test_columns_of_one_name_are_named(tmp_path: Path, header: str, message: str) -> None:
    cells = "," * header.count(",")
    with pytest.raises(SourceError, match=message):
        manifest_of(tmp_path / "m.csv", f"{header}\na.jpg{cells}\n")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_images_of_a_parquet_manifest_are_named_by_text_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"image_uri": pa.array(["b.jpg", "a.jpg", "b.jpg"]).cast(kind)}), tmp_path / "m.parquet")
    found = read_manifest(str(tmp_path / "m.parquet"))
    assert found is not None
    assert uris(found) == ["b.jpg", "a.jpg", "b.jpg"]


@pytest.mark.parametrize("column", ["image_uri", "note"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_text_of_a_parquet_manifest_that_is_no_utf8_is_named(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    latin = pa.array([b"a.jpg", b"a fairly long name of a br\xfccke.jpg"])
    text = pa.Array.from_buffers(pa.string(), len(latin), latin.buffers()).cast(kind)
    pq.write_table(pa.table({"image_uri": ["a.jpg", "b.jpg"], **{column: text}}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match=rf"m\.parquet: column {column} is not valid UTF-8; ") as raised:
        read_manifest(str(tmp_path / "m.parquet"))
    assert "\n" not in str(raised.value)


def test_a_manifests_columns_are_carried_whatever_else_names_its_images(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "photos", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    (folder / "d.zip").write_bytes(zip_with(0, tiles))
    lines = [f"{folder}/b.jpg,7", f"zip://tile-03.jpg::{folder}/d.zip,8"]
    manifest = write_files(tmp_path, {"m.csv": "\n".join(["image_uri,pier", *lines]).encode()}) / "m.csv"
    for sources in ([manifest, folder], [folder, manifest], [folder / "*.jpg", folder / "d.zip", manifest]):
        plan = plan_of(*sources)
        piers = zip(plan.table["image_uri"].to_pylist(), plan.table["carried:pier"].to_pylist(), strict=True)
        assert [f"{uri},{pier}" for uri, pier in piers if pier] == lines
        assert plan.table.num_rows == 3 + len(tiles)
        assert plan.listing.passed_over["images listed twice"] == 2


@pytest.mark.parametrize("kind", ["csv", "semicolons", "parquet"])
def test_a_manifest_names_images_and_carries_its_columns(tmp_path: Path, tiles: dict[str, bytes], kind: str) -> None:
    write_files(tmp_path, {"in/a.jpg": tiles["tile-00.jpg"], "in/b.jpg": tiles["tile-01.jpg"]})
    (tmp_path / "c.zip").write_bytes(zip_with(0, tiles))
    uris = ["in/a.jpg", str(tmp_path / "in/b.jpg"), f"zip://tile-05.jpg::{tmp_path}/c.zip", "in/gone.jpg",
            f"zip://none.jpg::{tmp_path}/c.zip"]  # fmt: skip
    frame = pd.DataFrame({"bridge": ["A7", "A8", "A9", "A10", "A11"], "image_uri": uris, "pier": [1, 2, 3, 4, 5]})
    path = tmp_path / ("m.parquet" if kind == "parquet" else "m.csv")
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep=";" if kind == "semicolons" else ",")
    table = plan_of(path).table
    by_name = {row["image_uri"].split("/")[-1]: row for row in table.to_pylist()}
    assert by_name["a.jpg"]["carried:bridge"] == "A7"
    assert by_name["b.jpg"]["carried:pier"] == (2 if kind == "parquet" else "2")
    rows = {row["carried:bridge"]: row for row in table.to_pylist()}
    assert table.num_rows == 5
    assert rows["A9"]["image_uri"] == uris[2]
    assert rows["A10"]["status"] == rows["A11"]["status"] == "missing"


def test_looking_at_a_manifests_images_takes_less_than_a_kilobyte_of_memory_for_each(tmp_path: Path) -> None:
    def peak_of(lines: int) -> int:
        write_files(tmp_path, {"m.csv": b"image_uri\n" + b"/nowhere/a.jpg\n" * lines})
        tracemalloc.start()
        try:
            assert plan_of(tmp_path / "m.csv").listing.passed_over == {"images listed twice": lines - 1}
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_of(24_000) - peak_of(12_000) < 12_000 * 1000


def test_a_csvs_columns_are_carried_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_uri,pier,state,note\na.jpg,007,NA,\nb.jpg,012,null,1e3\n")
    table = plan_of(tmp_path / "m.csv").table
    carried = {name: table[f"carried:{name}"].to_pylist() for name in ("pier", "state", "note")}
    assert carried == {"pier": ["007", "012"], "state": ["NA", "null"], "note": [None, "1e3"]}


def test_a_manifest_that_names_images_by_numbers_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"image_uri": [1, 2]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="is int64, not text"):
        plan_of(tmp_path / "m.parquet")


def test_categories_of_two_manifests_are_carried_as_their_values(tmp_path: Path) -> None:
    for name, sites in {"a": "xy", "b": "zqx"}.items():
        frame = pd.DataFrame({"image_uri": [f"{name}{row}.jpg" for row in range(300)]})
        frame["site"] = pd.Categorical([sites[row % len(sites)] for row in range(300)])
        frame.to_parquet(tmp_path / f"{name}.parquet")
    table = plan_of(tmp_path / "a.parquet", tmp_path / "b.parquet").table
    read = pa.concat_tables(map(read_shard, write_shards(table, str(tmp_path / "plan"))))
    assert read["carried:site"].to_pylist() == [*"xy" * 150, *"zqx" * 100]


@pytest.mark.parametrize(
    ("archive", "status", "message"),
    [
        ("whole.zip", "missing", "has no member b.jpg"),
        ("cut.zip", "unreadable", "its directory cannot be read"),
        ("none.zip", "unreadable", "its directory cannot be read"),
        ("none.tar", "unreadable", "it is damaged or cut off"),
    ],
)
def test_a_member_that_a_manifest_names_and_its_archive_does_not_give_is_a_row(
    tmp_path: Path, tiles: dict[str, bytes], archive: str, status: str, message: str
) -> None:
    whole = zip_with(0, {"a.jpg": tiles["tile-00.jpg"]})
    write_files(tmp_path, {"whole.zip": whole, "cut.zip": whole[:-30], "none.zip": b"x" * 99, "none.tar": b"x" * 9999})
    (tmp_path / "m.csv").write_text(f"image_uri,pier\n{archive[-3:]}://b.jpg::{archive},7\n")
    (row,) = plan_of(tmp_path / "m.csv").table.to_pylist()
    assert row["status"] == status
    assert message in row["error"]
    assert row["carried:pier"] == "7"


def test_a_manifest_without_image_uri_says_what_it_has(tmp_path: Path) -> None:
    for names in ("place,pier", "image,file"):
        (tmp_path / "m.csv").write_text(f"{names}\na.jpg,1\n")
        with pytest.raises(SourceError, match=rf"no column 'image_uri' \(its columns: {names.replace(',', ', ')}\)"):
            plan_of(tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["image", "filename", "file", "Path"])
def test_the_column_of_another_tool_names_the_images(name: str, tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"a.jpg": tiles["tile-00.jpg"]})
    (tmp_path / "m.csv").write_text(f"pier,{name}\n7,a.jpg\n")
    (row,) = plan_of(tmp_path / "m.csv").table.to_pylist()
    assert (row["image_uri"], row["carried:pier"], row["status"]) == (str(tmp_path / "a.jpg"), "7", None)


def test_manifests_as_spreadsheets_write_them(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path / "my photos", tiles)
    rows = [f"my photos/{name};{number};Brücke {number}" for number, name in enumerate(tiles)]
    for name, lines in {
        "separator.csv": ["sep=;", "image_uri;nr;name", *rows],
        "quoted-separator.csv": ['"sep=;"', "image_uri;nr;name", *rows],
        "tabs.csv": ["sep=\t", *(line.replace(";", "\t") for line in ["image_uri;nr;name", *rows])],
        "empty-rows.csv": ["image_uri;nr;name", *rows, ";;", ";;"],
        "windows.csv": ["image_uri;nr;name", *(row.replace("/", "\\") for row in rows)],
    }.items():
        for end in ("\r\n", "\r"):
            (tmp_path / name).write_bytes(("\ufeff" + end.join(lines) + end).encode())
            plan = plan_of(tmp_path / name)
            assert contents(plan) == {f"{tmp_path}/my photos/{tile}": data for tile, data in tiles.items()}, name
            assert plan.table["carried:name"].to_pylist() == [f"Brücke {number}" for number in range(len(tiles))]


def test_a_row_with_other_cells_and_no_image_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_uri,pier\na.jpg,1\n,2\n,\n")
    with pytest.raises(SourceError, match="1 rows have no image_uri"):
        plan_of(tmp_path / "m.csv")


def test_the_row_numbers_of_pandas_are_not_carried(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, tiles)
    table = pd.DataFrame({"image_uri": list(tiles), "pier": 7})
    table[table.index != 2].to_parquet(tmp_path / "m.parquet")
    plan = plan_of(tmp_path / "m.parquet")
    assert [field.name for field in plan.carried_fields] == ["pier"]
    assert plan.table.num_rows == len(tiles) - 1


@pytest.mark.parametrize("host", ["", "localhost"])
def test_file_urls_are_understood_however_they_are_written(host: str, tmp_path: Path, tiles: dict[str, bytes]) -> None:
    names = ["Pier 1 süd.jpg", "100%20.jpg", "a#b?.jpg"]
    folder = write_files(tmp_path / "my photos", dict(zip(names, tiles.values(), strict=False)))
    expected = {str(folder / name): data for name, data in zip(names, tiles.values(), strict=False)}
    as_uri = [(folder / name).as_uri().replace("file://", f"file://{host}") for name in names]
    literal = [f"file://{host}{folder}/{name}" for name in names]
    for uris in (as_uri, literal):
        pq.write_table(pa.table({"image_uri": uris}), tmp_path / "m.parquet")
        assert contents(plan_of(tmp_path / "m.parquet")) == expected
    assert contents(plan_of(folder.as_uri().replace("file://", f"file://{host}"))) == expected


def test_a_row_that_cannot_be_looked_up_ends_as_a_row(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    class Odd(WholeFiles):
        def end_headers(self) -> None:
            self._headers_buffer.append(b'ETag: "caf\xe9' + b"x" * 3000 + b'"\r\n')  # type: ignore[attr-defined]
            super().end_headers()

    folder = write_files(tmp_path / "www", {"a.jpg": tiles["tile-00.jpg"]})
    with serving(folder, Odd) as base:
        uris = [
            f"{base}/a.jpg",
            "foo://x/y.jpg",
            "nul\0.jpg",
            f"/{'x' * 5000}.jpg",
            "http://[/y.jpg",
            "zip://a::foo://x/y.zip",
            f"{'y' * 900_000}.jpg",
        ]
        pq.write_table(pa.table({"image_uri": uris}), tmp_path / "m.parquet")
        rows = fetch_all(plan_of(tmp_path / "m.parquet"))
    assert len(rows) == len(uris)
    read = [row for row in rows if row["status"] is None]
    assert [row["bytes"] for row in read] == [tiles["tile-00.jpg"]]
    assert len(str(read[0]["version"])) == 64
    assert {row["status"] for row in rows} == {None, "unreadable"}
    assert max(len(str(row["image_uri"])) for row in rows) < 8_000


def test_a_parquet_manifest_that_unpacks_to_any_size_is_refused_in_one_line(tmp_path: Path) -> None:
    """A text that many rows share is kept once in Parquet; and a cell that is no more than repeated takes no bytes."""
    uris = [f"{number}.jpg" for number in range(20_000)]
    for name, note in {"long": "x" * (2 << 20), "many": "x" * 500_000}.items():
        notes = pa.DictionaryArray.from_arrays(pa.array([0] * len(uris), pa.int32()), [note])
        table = pa.table({"image_uri": uris, "note": notes})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    pq.write_table(pa.table({"image_uri": uris, "note": ["a"] * len(uris)}), tmp_path / "good.parquet")
    with pytest.raises(SourceError, match=r"long.parquet: a cell of column note has more than 1,048,576 bytes"):
        read_manifest(str(tmp_path / "long.parquet"))
    with pytest.raises(SourceError, match=r"many.parquet holds 10,000,168,890 bytes of text, more than 4,294,967,296"):
        read_manifest(str(tmp_path / "many.parquet"))
    found = read_manifest(str(tmp_path / "good.parquet"))
    assert found is not None
    assert found.table["note"].to_pylist() == ["a"] * len(uris)


def test_pipes_devices_and_mistyped_urls_end_as_rows(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    write_files(tmp_path, {"a.jpg": tiles["tile-00.jpg"]})
    os.mkfifo(tmp_path / "fifo.zip")
    (tmp_path / "zero.zip").symlink_to("/dev/zero")
    odd = [f" http:/user:{KEY}@h/b.jpg", f"//u:{KEY}@h/x.jpg", f"simplecache::https://u:{KEY}@h/x?sig={KEY}"]
    uris = ["zip://a.jpg::fifo.zip", "zip://a.jpg::zero.zip", "fifo.zip", *odd, "\u200b a.jpg \t"]
    pq.write_table(pa.table({"image_uri": uris}), tmp_path / "m.parquet")
    rows = fetch_all(plan_of(tmp_path / "m.parquet"))
    assert len(rows) == len(uris)
    assert [row["bytes"] for row in rows if row["status"] is None] == [tiles["tile-00.jpg"]]
    assert KEY not in str(rows)


@pytest.mark.parametrize("header", ["image_uri" + ",a" * 500_000, ",'" * 32_000 + "image_uri"])
def test_a_csv_with_an_endless_header_is_refused_at_once(header: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\nx.jpg\n")
    began = time.process_time()
    with pytest.raises(SourceError, match=r"columns, more than 10,000"):
        read_manifest(str(tmp_path / "m.csv"))
    assert time.process_time() - began < 3
