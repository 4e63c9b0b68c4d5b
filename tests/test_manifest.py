"""A manifest says what is wrong with it, and loses no line."""

from __future__ import annotations

from pathlib import Path

import pytest

from crackbatch.errors import SourceError
from crackbatch.manifest import Manifest, read_manifest


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
