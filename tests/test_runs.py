"""The list of runs says of every run how far it came, and of nothing else that it is a run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

import crackbatch
from conftest import run_main
from crackbatch.errors import OutputError
from crackbatch.results.parts import count_statuses
from crackbatch.results.parts import write_part as write_rows
from crackbatch.results.publish import publish as publish_run
from crackbatch.results.run import Run
from crackbatch.results.table import COLUMNS
from crackbatch.storage import atomic, documents, lease, locations, objects

MODEL = "concrete-resnet18@0123456789ab"


def begin(out: str, run_id: str, day: int = 1) -> Run:
    """A run that was planned."""
    run = Run(out, run_id, f"2026-01-{day:02d}")
    about = {"fingerprint": run_id, "created_at": f"{run.date}T10:00:00.000000+00:00", "model_id": MODEL}
    run.begin({**about, "threshold": 0.5})
    return run


def write_part(run: Run, uris: Sequence[str], status: str = "ok") -> None:
    rows = [{"image_uri": uri, "version": "1", "status": status} for uri in uris]
    write_rows(run, pa.Table.from_pylist(rows, COLUMNS))


def publish(run: Run, uris: str) -> None:
    """The run's rows become visible; what it needed while it worked is still there."""
    publish_run(run, pa.table({"image_uri": list(uris), "version": ["1"] * len(uris)}), COLUMNS)


def summary_of(run: Run, **changed: object) -> dict[str, object]:
    statuses = count_statuses(run)
    about = {"run_id": run.run_id, "date": run.date, "model_id": MODEL, "statuses": statuses, "exit_code": 0}
    return {**about, "images": sum(statuses.values()), "seconds": 12.5, **changed}


def write(out: str, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in files.items():
        atomic.write_whole(locations.join(out, name), data)
    return files


FOREIGN = {
    "readme.txt": b"x",
    "parts/a.part": b"x",
    "runs/readme.txt": b"x",
    "runs/experiment-1/run.json": b'{"run_id": "experiment-1", "lr": 0.1}',
    "runs/experiment-1/parts/a.part": b"x",
    "runs/experiment-2/summary.json": b'{"loss": 1}',
    "runs/experiment-2/scratch/x.images": b"x",
    "runs/experiment-3/parts/part-0001.parquet": b"x",
    "runs/experiment-4/parts/0123456789abcdef01234567.part": b"x",
    "runs/experiment-4/model.pt": b"x",
    "runs/experiment-5/failure.json": b"{}",
    "runs/an experiment/plan/00000.arrow": b"x",
}


def crackbatch_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's answer, in a process that fails where it has loaded torch or ray."""
    return run_main(list(arguments), "assert not loaded")


def test_every_state_is_known_from_what_lies_there(out: str) -> None:
    write(out, FOREIGN)
    begin(out, "planned", 6)
    stopped = begin(out, "stopped", 5)
    write_part(stopped, "abc")
    write_part(stopped, "d", "empty")
    whole = begin(out, "whole", 4)
    write_part(whole, "abcd")
    write_part(whole, "e", "corrupt")
    publish(whole, "abcde")
    whole.finish(summary_of(whole, exit_code=3))
    broken = begin(out, "broken", 3)
    write_part(broken, "a")
    documents.write_json(
        locations.join(broken.folder, "failure.json"), {"error": "no space", "at": "2026-01-03T11:00:00"}
    )
    begin(out, "garbled", 2)
    write(out, {"runs/garbled/summary.json": b'{"images": '})
    write(
        out, {"runs/0/run.json": b"\xff", "runs/1/run.json": b"[]", "runs/planning/scratch/0123456789abcdef.copy": b"x"}
    )

    found = {run.run_id: run for run in crackbatch.list_runs(out)}
    assert {name: run.state for name, run in found.items()} == {
        "0": "damaged",
        "1": "damaged",
        "planning": "interrupted",
        "garbled": "damaged",
        "broken": "failed",
        "whole": "published",
        "stopped": "interrupted",
        "planned": "planned",
    }
    assert list(found) == ["0", "1", "planning", "garbled", "broken", "whole", "stopped", "planned"], "newest last"
    assert found["whole"] == crackbatch.ListedRun(
        "whole", "2026-01-04", "published", 5, {"ok": 4, "corrupt": 1}, 5, MODEL, 0.5,
        "2026-01-04T10:00:00.000000+00:00", seconds=12.5, exit_code=3,
    )  # fmt: skip
    assert (found["stopped"].images, found["stopped"].statuses) == (4, {"ok": 3, "empty": 1})
    assert (found["broken"].images, found["broken"].reason) == (1, "no space")
    assert found["planned"].images == found["planned"].published == 0
    for name, reason in {
        "0": "run.json is damaged",
        "1": "no JSON object",
        "garbled": "summary.json is damaged",
    }.items():
        assert reason in str(found[name].reason)
    assert found["garbled"].model_id == MODEL


def test_an_attempt_after_a_published_one_has_its_own_rows_and_the_published_ones(out: str) -> None:
    run = begin(out, "nightly")
    write_part(run, "abc")
    publish(run, "abc")
    run.finish(summary_of(run))
    begin(out, "nightly")
    write_part(run, "de")
    (found,) = crackbatch.list_runs(out)
    assert (found.state, found.images, found.published, found.seconds) == ("interrupted", 2, 3, None)


def test_a_part_that_cannot_be_read_is_named_and_stays(out: str) -> None:
    run = begin(out, "r")
    write_part(run, "abc")
    write(run.folder, {"parts/half.part": b"PAR1 half a part", "parts/empty.part": b""})
    (found,) = crackbatch.list_runs(out)
    assert (found.state, found.images) == ("interrupted", 3)
    assert found.reason == "parts that cannot be read, and will be scored again: 2"
    assert len(objects.list_files(run.parts_folder)) == 3


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("run.json", {"run_id": "another", "fingerprint": "f", "date": "2026-01-01"}, "that of run another"),
        ("run.json", {"run_id": "r", "fingerprint": "f"}, "run.json says None where date should stand"),
        ("run.json", {"run_id": "r", "fingerprint": "f", "date": "../.."}, "run.json has no date but '../..'"),
        ("summary.json", {"run_id": "r", "images": "many"}, "summary.json says 'many' where images should stand"),
        ("failure.json", {"error": None}, "failure.json says None where error should stand"),
    ],
)
def test_a_file_that_says_nothing_usable_is_damage(tmp_path: Path, name: str, text: object, reason: str) -> None:
    run = begin(str(tmp_path), "r")
    write(run.folder, {name: json.dumps(text).encode()})
    (found,) = crackbatch.list_runs(str(tmp_path))
    assert found.state == "damaged"
    assert reason in str(found.reason)


def test_a_run_that_somebody_works_on_is_running(out: str) -> None:
    run = begin(out, "r")
    write_part(run, "ab")
    with lease.Holding(run.folder, "run r"):
        (found,) = crackbatch.list_runs(out)
    assert (found.state, found.images, found.reason) == ("running", 2, None)
    assert found.holder
    assert found.since
    assert 0 <= float(str(found.seconds)) < 60
    assert crackbatch.list_runs(out)[0].state == "interrupted"


@pytest.mark.parametrize(
    "place", ["missing", "empty", "file", "other", "s3://inspections/nothing", "s3://no-such-bucket", ""]
)
def test_no_runs_is_an_error(tmp_path: Path, s3: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(str(tmp_path / "other"), FOREIGN)
    location = place if not place or "://" in place else str(tmp_path / place)
    with pytest.raises(OutputError, match="no runs in" if place else "OUT is missing"):
        crackbatch.list_runs(location)


@pytest.mark.parametrize("command", [["runs", "--json"], ["clean", "--yes"]])
@pytest.mark.parametrize("place", ["/no/such/folder", "s3://no-such-bucket", "http://127.0.0.1:1/", "gs2://x"])
def test_no_runs_is_one_line_and_exit_2(s3: str, command: list[str], place: str) -> None:
    answer = crackbatch_says(*command, place)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1, answer.stderr


def test_the_command_shows_a_table_of_100_columns_or_json(tmp_path: Path) -> None:
    out = str(tmp_path)
    run = begin(out, "2026-01-01-0123abcd")
    for status in ("ok", "empty", "not_an_image", "unsupported", "truncated", "corrupt", "too_large", "unreadable"):
        write_part(run, [f"{status}-{index}" for index in range(1000)], status)
    failed = begin(out, "x" * 128, 2)
    reason = "the run broke off:\n\x1b[31m" + "no space left " * 20
    documents.write_json(locations.join(failed.folder, "failure.json"), {"error": reason, "at": "2026-01-01T11:00:00"})
    table = crackbatch_says("runs", out)
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert all(len(line) <= 100 for line in lines if line != "x" * 128)
    assert re.match(r"2026-01-01-0123abcd  2026-01-01  interrupted +8,000$", lines[1])
    assert MODEL in lines[2]
    assert "x" * 128 in lines
    assert "\x1b" not in table.stdout
    answer = crackbatch_says("runs", out, "--json")
    assert answer.returncode == 0, answer.stderr
    assert [crackbatch.ListedRun(**run) for run in json.loads(answer.stdout)] == crackbatch.list_runs(out)
