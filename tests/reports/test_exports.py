"""Rows are exported as lists that other programs open, and no cell of them is a formula."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files, zip_with
from builders.pictures import draw_photo
from builders.runs import rows, score
from crackbatch.cli.commands import app
from crackbatch.errors import OptionError
from crackbatch.reports.exports import place
from crackbatch.results.table import COLUMNS

NAMES = ["file", "archive", "label", "crack_probability", "status", "error", "captured_at", "latitude", "longitude",
         "camera"]  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, bytes]) -> Path:
    """Results of tiles in a folder and in an archive, a photograph, and what is no image."""
    root = tmp_path_factory.mktemp("exports")
    some = dict(list(tiles.items())[:4])
    others = dict(list(tiles.items())[6:9])
    write_files(root / "in", {**some, "lot.zip": zip_with(0, others), "=cmd|' /C calc'!A0.jpg": tiles["tile-05.jpg"]})
    (root / "in" / "broken.jpg").write_bytes(b"GIF no")
    photo = io.BytesIO()
    draw_photo().save(photo, "JPEG", quality=92)
    write_files(root / "in", {"span 7/pier-é.jpg": photo.getvalue()})
    score(root / "in", root / "out", engine="local")
    return root / "out"


def read_csv(path: Path) -> list[dict[str, str]]:
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "Excel knows UTF-8 by its first bytes"
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_has_the_ten_columns_that_people_want_and_paths_that_the_system_opens(
    scored: Path, tmp_path: Path
) -> None:
    found = crackbatch.export(scored, tmp_path / "list.csv")
    lines = read_csv(tmp_path / "list.csv")
    assert list(lines[0]) == NAMES
    table = rows(scored)
    assert (found.rows, len(lines), found.left_out) == (len(table), len(table), {})
    loose = [line for line in lines if not line["archive"]]
    assert all(Path(line["file"].removeprefix("'")).is_file() for line in loose)
    members = [line for line in lines if line["archive"]]
    assert len(members) == 3
    for line in members:
        with zipfile.ZipFile(line["archive"]) as archive:
            assert archive.read(line["file"])
    (broken,) = (line for line in lines if line["status"] != "ok")
    assert (broken["label"], broken["crack_probability"]) == ("", "")
    probabilities = [float(line["crack_probability"]) for line in lines if line["crack_probability"]]
    assert probabilities == [float(str(value)) for value in table["crack_probability"].dropna().to_numpy()]


def test_all_columns_and_chosen_rows_are_exported(scored: Path, tmp_path: Path) -> None:
    crackbatch.export(scored, tmp_path / "all.csv", all_columns=True)
    lines = read_csv(tmp_path / "all.csv")
    assert set(lines[0]) == {"file", "date", *COLUMNS.names}
    crackbatch.export(scored, tmp_path / "cracks.csv", label="crack")
    assert {line["label"] for line in read_csv(tmp_path / "cracks.csv")} == {"crack"}
    crackbatch.export(scored, tmp_path / "sure.csv", min_probability=0.5)
    assert all(float(line["crack_probability"]) >= 0.5 for line in read_csv(tmp_path / "sure.csv"))


def test_cells_that_begin_as_formulas_are_text(tmp_path: Path) -> None:
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "harmless", "a=b"]
    folder = tmp_path / "out" / "predictions" / "date=2026-01-01"
    folder.mkdir(parents=True)
    many = [{"image_uri": text, "version": "1", "status": "failed", "error": text, "run_id": "r"} for text in evil]
    table = pa.Table.from_pylist(many, COLUMNS).append_column("=note", pa.array(evil))
    pq.write_table(table, folder / "r-00000.parquet")
    crackbatch.export(tmp_path / "out", tmp_path / "all.csv", all_columns=True)
    with open(tmp_path / "all.csv", encoding="utf-8-sig", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'=1+1", "'@SUM(A1)", "harmless", "a=b", "'=note"} <= set(cells)
    crackbatch.export(tmp_path / "out", tmp_path / "all.xlsx", all_columns=True)
    with zipfile.ZipFile(tmp_path / "all.xlsx") as book:
        assert b"<f>" not in book.read("xl/worksheets/sheet1.xml")


def test_excel_opens_a_list_with_numbers_as_numbers(scored: Path, tmp_path: Path) -> None:
    crackbatch.export(scored, tmp_path / "list.xlsx")
    lines = list(openpyxl.load_workbook(tmp_path / "list.xlsx").active.iter_rows(values_only=True))
    assert list(lines[0]) == NAMES
    assert len(lines) == 1 + len(rows(scored))
    assert isinstance(lines[1][3], float)


def test_geojson_has_a_point_for_each_row_with_a_position(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "predictions" / "date=2026-01-01"
    folder.mkdir(parents=True)
    seen = {"version": "1", "status": "ok", "label": "crack", "crack_probability": 0.9, "run_id": "r"}
    places = [{"latitude": 47.5, "longitude": 8.25}, {}, {"latitude": -33.0, "longitude": 151.0}]
    many = [{"image_uri": f"/a/{number}.jpg", **seen, **place} for number, place in enumerate(places)]
    pq.write_table(pa.Table.from_pylist(many, COLUMNS), folder / "r-00000.parquet")
    found = crackbatch.export(tmp_path / "out", tmp_path / "map.geojson")
    assert (found.rows, found.left_out) == (2, {"without a position": 1})
    page = json.loads((tmp_path / "map.geojson").read_text())
    assert [feature["geometry"] for feature in page["features"]] == [
        {"type": "Point", "coordinates": [8.25, 47.5]}, {"type": "Point", "coordinates": [151.0, -33.0]}
    ]  # fmt: skip
    assert page["features"][0]["properties"]["file"] == "/a/0.jpg"


def test_label_studio_gets_tasks_with_the_label_and_the_worst_region(scored: Path, tmp_path: Path) -> None:
    found = crackbatch.export(scored, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert found.left_out == {"in archives, which Label Studio cannot open": 3, "without a score": 1}
    assert len(tasks) == found.rows == len(rows(scored)) - 4
    (photo,) = (task for task in tasks if task["data"]["file"].endswith("pier-é.jpg"))
    assert photo["data"]["image"].endswith("span%207/pier-%C3%A9.jpg")
    choice, region = photo["predictions"][0]["result"]
    assert choice["value"] == {"choices": ["crack"]}
    box = region["value"]
    assert 0 <= box["x"] < box["x"] + box["width"] <= 100.001
    assert 0 <= box["y"] < box["y"] + box["height"] <= 100.001
    assert photo["predictions"][0]["model_version"].startswith("concrete-resnet18@")


@pytest.mark.parametrize(
    ("uri", "archive", "expected"),
    [
        ("/a/b.jpg", None, ("/a/b.jpg", None)),
        ("zip://x/y.jpg::/a/lot.zip", "/a/lot.zip", ("x/y.jpg", "/a/lot.zip")),
        ("tar://odd::name.jpg::s3://b/lot.tar", "s3://b/lot.tar", ("odd::name.jpg", "s3://b/lot.tar")),
    ],
)
def test_an_archive_and_its_member_are_named_apart(
    uri: str, archive: str | None, expected: tuple[str, str | None]
) -> None:
    assert tuple(place(uri, archive).values()) == expected


def test_a_run_writes_its_lists_at_once_and_wrong_names_are_refused_before_it(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "in", dict(list(tiles.items())[:3]))
    for options in ({"csv": "list.txt"}, {"xlsx": "list.csv"}):
        with pytest.raises(OptionError, match=r"the name of the list must end in \.(csv|xlsx)"):
            crackbatch.score(folder, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    score(folder, tmp_path / "out", engine="local", csv=tmp_path / "a.csv", xlsx=tmp_path / "a.xlsx")
    assert len(read_csv(tmp_path / "a.csv")) == 3
    assert zipfile.is_zipfile(tmp_path / "a.xlsx")
    with pytest.raises(OptionError, match="--label must be one of crack, no_crack"):
        crackbatch.export(tmp_path / "out", tmp_path / "b.csv", label="cracks")
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--out", str(tmp_path / "b.geojson")])
    assert shown.exit_code == 0, shown.output
    assert "left out: 3 rows without a position" in shown.output


def test_a_list_of_many_rows_takes_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "predictions" / "date=2026-01-01"
    folder.mkdir(parents=True)
    num = 30_000
    table = pd.DataFrame({"image_uri": [f"/a/{at:06d}.jpg" for at in range(num)], "crack_probability": 0.5})
    table = table.assign(version="1", status="ok", label="crack", run_id="r")
    full = pa.table({name: pa.array(table[name]) if name in table else pa.nulls(num, COLUMNS.field(name).type)
                     for name in COLUMNS.names}).cast(COLUMNS)  # fmt: skip
    pq.write_table(full, folder / "r-00000.parquet")
    assert crackbatch.export(tmp_path / "out", tmp_path / "many.xlsx").rows == num
    assert len(read_csv_of(tmp_path / "out", tmp_path / "many.csv")) == num


def read_csv_of(out: Path, file: Path) -> list[dict[str, str]]:
    crackbatch.export(out, file)
    return read_csv(file)
