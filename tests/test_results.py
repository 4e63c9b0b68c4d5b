"""Parts become one published table: all that was planned, each image once, whenever the run is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crackbatch.errors import OutputError, PublishError
from crackbatch.results.parts import count_failed, read_columns, read_done
from crackbatch.results.parts import write_part as write_rows
from crackbatch.results.predictions import read_predictions
from crackbatch.results.publish import publish as publish_run
from crackbatch.results.run import Run, choose_run
from crackbatch.results.table import COLUMNS
from crackbatch.storage import atomic, locations, objects
from test_runs import begin, publish, summary_of, write_part


def test_publishing_refuses_rows_that_are_not_the_plan(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "out"), "r", "2026-01-01")
    done = pa.table({"image_uri": ["a", "b"], "version": ["1", "1"]})
    part = pa.Table.from_pylist([{"image_uri": uri, "version": "1", "status": "ok"} for uri in "ab"], COLUMNS)
    write_rows(run, part)
    planned = pa.table({"image_uri": ["a", "b", "c"], "version": ["1", "1", "1"]})
    with pytest.raises(PublishError, match="1 of 3 planned images have no row"):
        publish_run(run, planned, COLUMNS)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    # A part that stands twice (a retried task) and a row of an image that has changed since do no harm.
    write_rows(run, pa.concat_tables([part.slice(1), part.slice(0, 1)]))
    stale = pa.Table.from_pylist([{"image_uri": "a", "version": "0", "status": "ok"}], COLUMNS)
    write_rows(run, stale)
    (file,) = publish_run(run, done, COLUMNS)
    assert sorted(pq.read_table(file)["image_uri"].to_pylist()) == ["a", "b"]


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


def test_a_day_may_be_given_as_a_date(tmp_path: Path) -> None:
    day = date(2026, 2, 28)
    assert choose_run(str(tmp_path), "0" * 64, day, None).date == day.isoformat()  # type: ignore[arg-type]


def write_nights(out: Path, *piers: object) -> None:
    """A published run of one image for each night, whose manifest gave it such a pier."""
    for night, pier in enumerate(piers, start=1):
        date = f"2026-01-{night:02d}"
        row = pa.Table.from_pylist([{"image_uri": date, "status": "ok", "run_id": date}], COLUMNS)
        folder = out / "predictions" / f"date={date}"
        folder.mkdir(parents=True)
        pq.write_table(row.append_column("pier", pa.array([pier])), folder / f"{date}-00000.parquet")


def test_publishing_never_replaces_a_published_file(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "out"), "r", "2026-01-01")
    for uri in "abc":
        if uri == "c":
            Path(run.published_files()[0]).unlink()
        write_rows(run, pa.Table.from_pylist([{"image_uri": uri, "version": "1", "status": "ok"}], COLUMNS))
        publish_run(run, pa.table({"image_uri": [uri], "version": ["1"]}), COLUMNS)
    kept = [pq.read_table(file)["image_uri"].to_pylist() for file in run.published_files()]
    assert kept == [["b"], ["c"]]


def test_a_manifest_that_changed_between_attempts_is_published_with_its_columns_of_today(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "out"), "r", "2026-01-01")
    old = pa.schema([*COLUMNS, pa.field("pier", pa.int64())])
    new = pa.schema([*COLUMNS, pa.field("pier", pa.float64()), pa.field("span", pa.string())])
    for uri, schema in (("a", old), ("b", new)):
        row = {"image_uri": uri, "version": "1", "status": "ok", "pier": 1}
        write_rows(run, pa.Table.from_pylist([row], schema))
    (file,) = publish_run(run, pa.table({"image_uri": ["a", "b"], "version": ["1", "1"]}), new)
    assert pq.read_schema(file).remove_metadata() == new


def test_an_unreadable_part_is_done_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r", "2026-01-01")
    atomic.write_whole(locations.join(run.parts_folder, "x.part"), b"PAR1 half a part")
    _, parts = read_done(run)
    assert parts.num_rows == 0
    assert not objects.list_files(run.parts_folder)


def test_a_part_that_cannot_be_decompressed_is_done_again(tmp_path: Path) -> None:
    run = begin(str(tmp_path), "r")
    write_part(run, [f"image-{number}" for number in range(500)])
    (part,) = (tmp_path / "runs/r/parts").iterdir()
    data = bytearray(part.read_bytes())
    data[40:400] = bytes(360)
    part.write_bytes(data)
    assert read_done(run)[1].num_rows == 0
    assert not part.exists()


KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from crackbatch.results import publish as publishing
from crackbatch.storage import objects
from test_runs import begin, publish

publishing.ROW_GROUP_ROWS = publishing._MAX_FILE_ROWS = 1
move, left = objects.move, int(sys.argv[2])

def move_or_die(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    move(source, target)

objects.move = move_or_die
publish(begin(sys.argv[1], "r"), "abcd")
"""


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_run_killed_while_its_files_become_visible_publishes_the_rest(out: str, moved: int) -> None:
    run = begin(out, "r")
    for uri in "abcd":
        write_part(run, uri, "empty" if uri == "a" else "ok")
    command = [sys.executable, "-c", KILLED_WHILE_PUBLISHING, out, str(moved)]
    killed = subprocess.run(command, cwd=Path(__file__).parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(run.published_files()) == moved
    assert count_failed(run) == 1, "a row that is in a part and in a published file is one"
    published, _ = read_done(run)
    done = published.column("image_uri").to_pylist()
    publish(run, "".join(sorted(set("abcd") - set(done))))
    found = [uri for file in run.published_files() for uri in read_columns(file, ["image_uri"])[0]]
    assert sorted(str(uri) for uri in found) == list("abcd")


def test_a_night_without_anything_new_has_one_empty_file_however_often_it_is_run(out: str) -> None:
    run = begin(out, "r")
    for _ in range(3):
        publish(run, "")
        run.finish(summary_of(run))
    (file,) = run.published_files()
    assert read_columns(file, ["image_uri"]).num_rows == 0


@pytest.mark.parametrize("name", ["out[1]", "out*", "o?t"])
def test_an_output_may_have_the_name_of_a_pattern(out: str, name: str) -> None:
    neighbour = begin(f"{out}1", "r")
    write_part(neighbour, "abc")
    there = atomic.check_output(locations.join(out, name))
    run = begin(there, "r")
    write_part(run, "abc")
    publish(run, "abc")
    run.finish(summary_of(run))
    assert len(run.published_files()) == 1
    assert sorted(objects.list_sizes(run.folder)) == ["run.json", "summary.json"]
    assert sorted(objects.list_sizes(there)) == [
        "predictions/date=2026-01-01/r-00000.parquet", "runs/r/run.json", "runs/r/summary.json"
    ]  # fmt: skip
    assert read_done(neighbour)[1].num_rows == 3
