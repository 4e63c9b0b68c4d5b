"""The published table is read with all its runs, whatever columns they have."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.archives import write_files
from builders.runs import Scored, rows, score
from crackbatch.errors import OptionError, OutputError
from crackbatch.results.predictions import read_predictions
from crackbatch.results.table import COLUMNS


def test_a_column_that_two_manifests_gave_different_types_is_read_as_text(tmp_path: Path) -> None:
    write_nights(tmp_path, 7, "A1")
    table = read_predictions(str(tmp_path))
    assert dict(zip(table["image_uri"], table["pier"], strict=True)) == {"2026-01-01": "7", "2026-01-02": "A1"}
    assert set(table["date"].astype(str)) == {"2026-01-01", "2026-01-02"}


@pytest.mark.parametrize("pier", [[5], {"number": 1}, b"\xff", Decimal("1.5")])
def test_a_column_whose_types_in_two_runs_do_not_go_together_is_named_and_each_run_is_read(
    tmp_path: Path, pier: object
) -> None:
    write_nights(tmp_path, 7, pier)
    message = "^column 'pier' is .*int64.* in different runs, .* give run_id= .* or columns= .*"
    with pytest.raises(OutputError, match=message):
        read_predictions(str(tmp_path))
    assert len(read_predictions(str(tmp_path), columns=["image_uri"])) == 2
    for night, expected in {"2026-01-01": 7, "2026-01-02": pier}.items():
        for chosen in ({"run_id": night}, {"date": night}):
            (found,) = read_predictions(str(tmp_path), **chosen)["pier"]
            assert str(found) == str(expected)


def test_members_of_one_name_are_several_images_to_a_reader_too(tmp_path: Path) -> None:
    folder = tmp_path / "predictions" / "date=2026-01-01"
    folder.mkdir(parents=True)
    for night, share in enumerate((0.1, 0.2)):
        rows = [
            {"image_uri": "zip://a.jpg::/m.zip", "version": version, "crack_probability": probability, "status": "ok",
             "run_id": f"r{night}", "scored_at": datetime(2026, 1, 1 + night, tzinfo=UTC)}
            for version, probability in ((f"{night}", 0.7 + share), (f"{night}#2", share))
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), folder / f"r{night}-00000.parquet")
    found = read_predictions(str(tmp_path))
    assert dict(zip(found["version"], found["run_id"], strict=True)) == {"1": "r1", "1#2": "r1"}


def write_nights(out: Path, *piers: object) -> None:
    """A published run of one image for each night, whose manifest gave it such a pier."""
    for night, pier in enumerate(piers, start=1):
        date = f"2026-01-{night:02d}"
        row = pa.Table.from_pylist([{"image_uri": date, "status": "ok", "run_id": date}], COLUMNS)
        folder = out / "predictions" / f"date={date}"
        folder.mkdir(parents=True)
        pq.write_table(row.append_column("pier", pa.array([pier])), folder / f"{date}-00000.parquet")


@pytest.mark.slow
def test_every_reader_sees_the_same_rows(tmp_path: Path, scored: Scored) -> None:
    import ray

    out = scored.copy(tmp_path / "out")
    leftover = out / "runs" / "other" / "parts" / "0.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(next(out.rglob("*.parquet")).read_bytes())
    ours = sorted(rows(out)["image_uri"])
    assert len(ours) == 13
    assert sorted(pd.read_parquet(out / "predictions")["image_uri"]) == ours
    query = f"select image_uri, date from read_parquet('{out}/predictions/**/*.parquet', hive_partitioning=true)"
    assert sorted(row[0] for row in duckdb.sql(query).fetchall()) == ours
    assert sorted(ds.dataset(out / "predictions", partitioning="hive").to_table()["image_uri"].to_pylist()) == ours
    assert sorted(row["image_uri"] for row in ray.data.read_parquet(str(out / "predictions")).take_all()) == ours


def test_reading_predictions(tmp_path: Path, scored: Scored) -> None:
    with pytest.raises(OutputError, match="no predictions in"):
        rows(tmp_path / "nothing")
    everything = rows(scored.out)
    middle = float(everything["crack_probability"].median())
    likely = rows(scored.out, min_probability=middle, columns=["image_uri", "crack_probability"])
    assert list(likely.columns) == ["image_uri", "crack_probability"]
    assert len(likely) == (everything["crack_probability"] >= middle).sum() < len(everything)
    with pytest.raises(OptionError, match="no column 'probability'"):
        rows(scored.out, columns=["probability"])
    with pytest.raises(OptionError, match="no rows match"):
        rows(scored.out, run_id="another")


def test_rows_of_one_model_are_read_and_labels_at_several_thresholds_are_warned_of(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    folder = write_files(tmp_path / "in", dict(list(tiles.items())[:3]))
    score(folder, tmp_path / "out", engine="local", threshold=0.3, date="2026-01-01")
    (folder / "tile-00.jpg").unlink()
    second = score(folder, tmp_path / "out", engine="local", threshold=0.6, date="2026-01-02")
    with pytest.warns(UserWarning, match=r"labelled at several thresholds \(0\.3, 0\.6\)"):
        both = crackbatch.read_predictions(tmp_path / "out")
    assert sorted(both["threshold"]) == pytest.approx([0.3, 0.6, 0.6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(crackbatch.read_predictions(tmp_path / "out", run_id=second.run_id)) == 2
        assert len(crackbatch.read_predictions(tmp_path / "out", columns=["crack_probability"])) == 3
        with pytest.raises(UserWarning):
            crackbatch.read_predictions(tmp_path / "out", model_id=second.model_id)
    assert crackbatch.read_predictions(tmp_path / "out", model_id="another@1").empty
