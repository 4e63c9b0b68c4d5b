"""A manifest says what is wrong with it, and loses no line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crackbatch.errors import SourceError
from crackbatch.sources.manifest import Manifest, read_manifest


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
        ("image_uri,pier,pier", "two columns of the same name, 'pier'; rename one"),
        ("image_uri,pier,,", "two columns of the same name, which is empty; name them or leave them out"),
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
    with pytest.raises(SourceError, match=rf"m\.parquet: {column} is not UTF-8; ") as raised:
        read_manifest(str(tmp_path / "m.parquet"))
    assert "\n" not in str(raised.value)
