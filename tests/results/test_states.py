"""The list of runs says of every run how far it came, and of nothing else that it is a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import crackbatch
from builders.runs import FOREIGN, MODEL, begin, publish, summary_of, write, write_part
from crackbatch.errors import OutputError
from crackbatch.storage import documents, lease, locations, objects


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
        "planned": "interrupted",
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
        "1": "not a JSON object",
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
    assert found.reason == "2 parts cannot be read and will be scored again"
    assert len(objects.list_files(run.parts_folder)) == 3


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("run.json", {"run_id": "another", "fingerprint": "f", "date": "2026-01-01"}, "belongs to run 'another'"),
        ("run.json", {"run_id": "r", "fingerprint": "f"}, "run.json has None instead of a date"),
        ("run.json", {"run_id": "r", "fingerprint": "f", "date": "../.."}, "run.json has '../..' instead of a date"),
        ("summary.json", {"run_id": "r", "images": "many"}, "summary.json has 'many' as images"),
        ("failure.json", {"error": None}, "failure.json has None as error"),
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
