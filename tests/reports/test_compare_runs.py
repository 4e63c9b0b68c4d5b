"""Two runs are compared image by image and folder by folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files
from builders.runs import score
from crackbatch.cli.commands import app
from crackbatch.errors import OptionError
from crackbatch.results.table import COLUMNS


def write_run(out: Path, run_id: str, rows: list[dict[str, object]], **same: object) -> str:
    """A published table of a run; returns how `compare_runs` names it."""
    folder = out / "predictions" / f"date=2026-01-{len(run_id):02d}"
    folder.mkdir(parents=True)
    every = {"version": "1", "status": "ok", "run_id": run_id, "threshold": 0.5, "model_id": "m@1", **same}
    pq.write_table(
        pa.Table.from_pylist([{**every, **row} for row in rows], COLUMNS), folder / f"{run_id}-00000.parquet"
    )
    return str(out / "runs" / run_id)


def row(uri: str, probability: float | None, archive: str | None = None) -> dict[str, object]:
    if probability is None:
        return {"image_uri": uri, "status": "corrupt"}
    label = "crack" if probability >= 0.5 else "no_crack"
    return {"image_uri": uri, "crack_probability": probability, "label": label, "archive": archive}


def test_each_change_of_an_image_is_told_and_counted_by_folder(tmp_path: Path) -> None:
    before = write_run(
        tmp_path / "a", "one",
        [row("/p/rose.jpg", 0.2), row("/p/fell.jpg", 0.9), row("/q/same.jpg", 0.7), row("/q/gone.jpg", 0.6),
         row("/q/broke.jpg", 0.4), row("zip://x.jpg::/lot.zip", 0.1, "/lot.zip")],
    )  # fmt: skip
    after = write_run(
        tmp_path / "b", "second",
        [row("/p/rose.jpg", 0.8), row("/p/fell.jpg", 0.3), row("/q/same.jpg", 0.6), row("/q/new.jpg", 0.9),
         row("/q/broke.jpg", None), row("zip://x.jpg::/lot.zip", 0.95, "/lot.zip")],
    )  # fmt: skip
    found = crackbatch.compare_runs(before, after, csv=tmp_path / "changes.csv")
    changes = dict(zip(found.changes["image_uri"], found.changes["change"], strict=True))
    assert changes == {
        "/p/rose.jpg": "rose", "zip://x.jpg::/lot.zip": "rose", "/p/fell.jpg": "fell", "/q/broke.jpg": "status",
        "/q/new.jpg": "new", "/q/gone.jpg": "gone",
    }  # fmt: skip
    assert (found.same, found.notes) == (1, [])
    assert found.counts == {"rose": 2, "fell": 1, "status": 1, "new": 1, "gone": 1}
    assert found.folders.loc["/p"].to_dict() == {"rose": 1, "fell": 1, "status": 0, "new": 0, "gone": 0}
    assert found.folders.loc["/lot.zip", "rose"] == 1
    with open(tmp_path / "changes.csv", encoding="utf-8-sig", newline="") as file:
        lines = {line["image_uri"]: line for line in csv.DictReader(file)}
    assert (lines["/p/rose.jpg"]["probability_before"], lines["/p/rose.jpg"]["probability_after"]) == ("0.2", "0.8")
    assert lines["/q/new.jpg"]["probability_before"] == ""


def test_members_of_one_name_are_images_of_their_own(tmp_path: Path) -> None:
    name = "zip://x.jpg::/lot.zip"
    same, low, high = (
        {**row(name, value), "version": version} for value, version in ((0.9, "1"), (0.2, "2"), (0.8, "2"))
    )
    found = crackbatch.compare_runs(
        write_run(tmp_path, "one", [same, low]), write_run(tmp_path, "second", [same, high])
    )
    assert (found.counts["rose"], len(found.changes), found.same) == (1, 1, 1)


def test_a_night_without_photographs_has_no_other_threshold(tmp_path: Path) -> None:
    tile, photo = row("/tile.jpg", 0.7), {**row("/photo.jpg", 0.9), "tiles": 400, "threshold": 0.8}
    first, second = write_run(tmp_path, "one", [tile, photo]), write_run(tmp_path, "second", [tile])
    assert crackbatch.compare_runs(first, second).notes == []
    third = write_run(tmp_path, "another", [tile, {**photo, "threshold": 0.9}])
    (note,) = crackbatch.compare_runs(first, third).notes
    assert note == "the runs have other thresholds for photographs: 0.8 before, 0.9 after"


def test_another_model_or_threshold_is_told_first(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, run, [row("/a.jpg", 0.7)], model_id=model, threshold=threshold)
        for run, model, threshold in (("one", "m@1", 0.5), ("second", "m@2", 0.25))
    ]
    shown = CliRunner().invoke(app, ["compare-runs", *runs])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[:3] == [
        "one → second",
        "note: the runs have other models: m@1 before, m@2 after",
        "note: the runs have other thresholds: 0.5 before, 0.25 after",
    ]
    assert lines[3].endswith("the same 1")


def test_without_a_second_run_the_two_newest_are_compared(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    folder = write_files(tmp_path / "in" / "pier", dict(list(tiles.items())[:4]))
    score(folder.parent, tmp_path / "out", engine="local", date="2026-11-19")
    with pytest.raises(OptionError, match="has 1 published runs; two are needed"):
        crackbatch.compare_runs(tmp_path / "out")
    (folder / "tile-00.jpg").unlink()
    (folder / "tile-99.jpg").write_bytes(tiles["tile-09.jpg"])
    second = score(folder.parent, tmp_path / "out", engine="local", date="2026-11-20")
    shown = CliRunner().invoke(app, ["compare-runs", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "changed status 0, new 1, gone 1, the same 3" in shown.output
    assert crackbatch.compare_runs(tmp_path / "out").after == second.run_id
    assert "in/pier" in shown.output
