"""Parts become one published table: all that was planned, each image once, whenever the run is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crackbatch
from builders.places import TESTS
from builders.runs import begin, publish, summary_of, write_part
from crackbatch.errors import PublishError
from crackbatch.results.parts import count_failed, read_columns, read_done
from crackbatch.results.parts import write_part as write_rows
from crackbatch.results.publish import publish as publish_run
from crackbatch.results.run import Run
from crackbatch.results.table import COLUMNS


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


KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from crackbatch.results import publish as publishing
from crackbatch.storage import objects
from builders.runs import begin, publish

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
    killed = subprocess.run(command, cwd=TESTS, check=False)
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


@pytest.mark.slow
def test_more_than_two_gigabytes_of_texts_are_published_and_read(tmp_path: Path) -> None:
    """Arrow joins the texts of a column before it sorts them, and its usual texts end at two gigabytes."""
    run, names = begin(str(tmp_path), "large"), [f"{'x' * 3990}{number:06}.jpg" for number in range(560_000)]
    for start in range(0, len(names), 40_000):
        write_part(run, names[start : start + 40_000])
    publish_run(run, pa.table({"image_uri": names, "version": ["1"] * len(names)}), COLUMNS)
    table = crackbatch.read_predictions(str(tmp_path), columns=["image_uri"])
    assert len(table) == len(names)
    assert table["image_uri"].is_unique
