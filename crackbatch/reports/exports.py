"""Writes published rows as lists for other programs: CSV, Excel, GeoJSON, tasks for Label Studio."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from crackbatch.errors import OptionError
from crackbatch.results.predictions import read_predictions
from crackbatch.results.table import LABELS
from crackbatch.storage import atomic, locations
from crackbatch.storage.redaction import masked

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {".csv": "CSV", ".xlsx": "Excel", ".geojson": "GeoJSON", ".json": "tasks for Label Studio"}
# What people want to see. `file` and `archive` are made from `image_uri`.
_FEW = ("label", "crack_probability", "status", "error", "captured_at", "latitude", "longitude", "camera")
_OF_TASKS = ("model_id", "width", "height", "box_x", "box_y", "box_w", "box_h")
# A spreadsheet takes a text that begins like this for a formula, also from a CSV file
# (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MAX_SHEET_ROWS = 1_048_575  # of Excel, beside the header
_MAX_CELL = 32_767  # characters
_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Exported:
    """The file that was written, its number of rows, and the rows that its format cannot hold, with the reason."""

    file: str
    rows: int
    left_out: dict[str, int]


def export(
    out: locations.Location,
    file: locations.Location,
    *,
    run_id: str | None = None,
    date: str | None = None,
    min_probability: float | None = None,
    label: str | None = None,
    all_columns: bool = False,
) -> Exported:
    """Write published rows to one file; its ending `.csv`, `.xlsx`, `.geojson` or `.json` (Label Studio) is its format.

    `out`, `run_id`, `date` and `min_probability` select rows as in `read_predictions`; with a `label`, only its images
    are written. The file has the ten most useful columns, or all columns of the table. Raises RequestError.
    """
    location = check_file(file)
    if label is not None and label not in LABELS:
        raise OptionError(f"--label must be one of {', '.join(LABELS)}, got {label!r}")
    kind = _kind(location)
    few = ["image_uri", "archive", *_FEW, *(_OF_TASKS if kind == ".json" else ())]
    columns = None if all_columns else few
    rows = read_predictions(out, run_id=run_id, date=date, min_probability=min_probability, columns=columns)
    if label is not None:
        rows = rows[rows["label"] == label]
    left_out = dict[str, int]()
    if kind == ".geojson":
        rows = _only(rows, rows["latitude"].notna() & rows["longitude"].notna(), "without a position", left_out)
    elif kind == ".json":
        rows = _only(rows, rows["archive"].isna(), "in archives, which Label Studio cannot open", left_out)
        rows = _only(rows, rows["status"] == "ok", "without a score", left_out)
    write: Callable[[pd.DataFrame, bool, IO[bytes]], None] = {
        ".csv": _write_csv, ".xlsx": _write_excel, ".geojson": _write_geojson, ".json": write_tasks,
    }[kind]  # fmt: skip
    with atomic.new_file(location) as opened:
        write(rows, all_columns, opened)
    return Exported(masked(location), len(rows), left_out)


def check_file(file: locations.Location, *endings: str) -> str:
    """Return the location of a list, normalized; raise OptionError if its name has no such ending, or no format's."""
    known, name = {ending: FORMATS[ending] for ending in endings or FORMATS}, os.fspath(file)
    if _kind(name) not in known:
        shown = ", ".join(f"{ending} ({what})" for ending, what in known.items())
        raise OptionError(f"the name of the list must end in {shown}; got {masked(name)!r}")
    return locations.normalize(name)


def _kind(location: str) -> str:
    return os.path.splitext(locations.file_name(location))[1].lower()


def _only(rows: pd.DataFrame, chosen: pd.Series, others: str, left_out: dict[str, int]) -> pd.DataFrame:
    if num := int((~chosen).sum()):
        left_out[others] = num
    return rows[chosen]


def _columns(rows: pd.DataFrame, all_columns: bool) -> list[str]:
    names = [name for name in rows.columns if name not in ("image_uri", "archive")] if all_columns else list(_FEW)
    return ["file", "archive", *(["image_uri"] if all_columns else []), *names]


def _records(rows: pd.DataFrame, names: Sequence[str]) -> Iterator[list[Any]]:
    """Yield the values of each row: texts, numbers, times, and None for what is missing."""
    sources = [name for name in names if name not in ("file", "archive", "image_uri")]
    for start in range(0, len(rows), _BATCH_ROWS):
        part = rows.iloc[start : start + _BATCH_ROWS]
        for uri, archive, *cells in zip(part["image_uri"], part["archive"], *columns_of(part, sources), strict=True):
            known = {**place(uri, archive), "image_uri": uri, **dict(zip(sources, cells, strict=True))}
            yield [known[name] for name in names]


def place(image_uri: str, archive: str | None) -> dict[str, str | None]:
    """Return the `file` of an image as the system opens it; of a member of an archive, its name and the `archive`."""
    if not isinstance(archive, str):
        return {"file": image_uri, "archive": None}
    member = image_uri.partition("://")[2] or image_uri
    end = f"::{archive}"
    return {
        "file": member.removesuffix(end) if member.endswith(end) else member.rpartition("::")[0],
        "archive": archive,
    }


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each row as a dictionary of such values."""
    names = list(rows.columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns_of(rows, names), strict=True)]


def columns_of(rows: pd.DataFrame, names: Sequence[str]) -> list[list[Any]]:
    """Return the values of each column: texts, numbers, times, and None for what is missing."""
    return [[_value(cell) for cell in _shortest(rows[name])] for name in names]


def _shortest(column: pd.Series) -> pd.Series:
    """Return a column in which a float32 such as 0.2 has no more digits than it needs, where Python shows 17."""
    return column.astype(str).astype(float) if column.dtype == "float32" else column


def _value(cell: Any) -> Any:
    import pandas as pd

    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, (list, dict, tuple)):
        return json.dumps(cell, default=str)
    if cell is None or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, pd.Timestamp):
        return cell.to_pydatetime()
    return cell


def harmless(cell: Any) -> Any:
    """Return a cell as a spreadsheet may have it: text that would be a formula gets an apostrophe before it."""
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ", timespec="seconds")
    if isinstance(cell, bytes):
        return cell.hex()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _write_csv(rows: pd.DataFrame, all_columns: bool, file: IO[bytes]) -> None:
    names = _columns(rows, all_columns)
    write_csv(names, _records(rows, names), file)


def write_csv(names: Sequence[str], records: Iterable[Sequence[Any]], file: IO[bytes]) -> None:
    """Write names and rows as CSV, as spreadsheets read it."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="", write_through=True)  # Excel knows UTF-8 by its first bytes
    lines = csv.writer(text)
    lines.writerow(map(harmless, names))
    lines.writerows(map(harmless, row) for row in records)
    text.flush()
    text.detach()


def _write_excel(rows: pd.DataFrame, all_columns: bool, file: IO[bytes]) -> None:
    import xlsxwriter

    names = _columns(rows, all_columns)
    with tempfile.TemporaryDirectory(prefix="crackbatch-") as folder:
        path = Path(folder, "rows.xlsx")
        options = {"constant_memory": True, "tmpdir": folder, "strings_to_urls": False}
        with xlsxwriter.Workbook(path, options) as book:
            bold = book.add_format({"bold": True})
            records = _records(rows, names)
            for number in range(max(1, -(-len(rows) // _MAX_SHEET_ROWS))):
                sheet = book.add_worksheet(f"images {number + 1}" if number else "images")
                sheet.freeze_panes(1, 0)
                sheet.set_column(0, 1, 40)
                sheet.set_column(2, len(names) - 1, 16)
                for at, name in enumerate(names):
                    sheet.write_string(0, at, name, bold)
                for line in range(1, min(_MAX_SHEET_ROWS, len(rows) - number * _MAX_SHEET_ROWS) + 1):
                    for at, cell in enumerate(next(records)):
                        _write_cell(sheet, line, at, harmless(cell))
        with open(path, "rb") as made:
            while data := made.read(1 << 20):
                file.write(data)


def _write_cell(sheet: Any, line: int, at: int, cell: Any) -> None:
    if isinstance(cell, (bool, str)):
        sheet.write_string(line, at, str(cell)[:_MAX_CELL])
    elif isinstance(cell, (int, float)) and math.isfinite(cell):
        sheet.write_number(line, at, cell)
    elif cell is not None:
        sheet.write_string(line, at, str(cell)[:_MAX_CELL])


def _write_geojson(rows: pd.DataFrame, all_columns: bool, file: IO[bytes]) -> None:
    """Write a point for each row (RFC 7946)."""
    names = _columns(rows, all_columns)
    file.write(b'{"type": "FeatureCollection", "features": [')
    for number, row in enumerate(_records(rows, names)):
        known = dict(zip(names, row, strict=True))
        feature = {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [known.pop("longitude"), known.pop("latitude")]},
            "properties": known,
        }
        file.write(b",\n" if number else b"\n")
        file.write(_json(feature))
    file.write(b"\n]}\n")


def write_tasks(rows: pd.DataFrame, all_columns: bool, file: IO[bytes]) -> None:
    """Write a task with a prediction for each image, as Label Studio imports them.

    https://labelstud.io/guide/tasks and https://labelstud.io/guide/predictions describe the format. Label Studio serves
    local files under `/data/local-files/`, from the folder in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT: here `/`.
    """
    shown_names = list(dict.fromkeys(["image_uri", *_columns(rows, all_columns)]))
    names = list(dict.fromkeys([*shown_names, *_OF_TASKS]))
    file.write(b"[")
    for number, row in enumerate(_records(rows, names)):
        known = dict(zip(names, row, strict=True))
        uri = known["image_uri"]
        shown = f"/data/local-files/?d={quote(uri.lstrip('/'))}" if locations.is_local(uri) else uri
        task = {
            "data": {"image": shown, **{name: known[name] for name in shown_names}},
            "predictions": [
                {"model_version": known["model_id"], "score": known["crack_probability"], "result": _answers(known)}
            ],
        }
        file.write(b",\n" if number else b"\n")
        file.write(_json(task))
    file.write(b"\n]\n")


def _answers(known: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the label of an image, and its worst region as a rectangle in percent of its size."""
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [known["label"]]}}
    found: list[dict[str, Any]] = [choice]
    if known["box_x"] is not None and known["label"] == "crack":
        width, height = known["width"], known["height"]
        value = {
            "x": 100 * known["box_x"] / width,
            "y": 100 * known["box_y"] / height,
            "width": 100 * known["box_w"] / width,
            "height": 100 * known["box_h"] / height,
            "rectanglelabels": ["crack"],
        }
        size = {"original_width": int(width), "original_height": int(height)}
        found.append({"from_name": "region", "to_name": "image", "type": "rectanglelabels", **size, "value": value})
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False).encode("utf-8", "backslashreplace")
