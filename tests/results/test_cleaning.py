"""Cleaning takes what interrupted runs left behind, and never a published row or what is not ours."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import crackbatch
from builders.processes import crackbatch_says
from builders.runs import FOREIGN, begin, publish, summary_of, write, write_part
from crackbatch.errors import OptionError
from crackbatch.results.parts import read_done
from crackbatch.results.run import Run, choose_run
from crackbatch.storage import atomic, documents, lease, locations, objects

# Of a process of this machine that is gone: process 1 began at another time.
DEAD = lease.Lease(3, "here", 1, lease._machine(), "-", "t", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")

WORK = {
    "plan/00000.arrow": b"p",
    "scratch/0123456789abcdef.images": b"s",
    "publish/r-00000.parquet.whole": b"w",
    "lease-00003.json": lease._encode(DEAD),
    "parts/.0123456789abcdef01234567.part.abcd_123.tmp": b"t",
    ".run.json.abcd_123.tmp": b"t",
}


def contents(out: str) -> dict[str, bytes]:
    """Every file in the output location, those still being written too."""
    found, path = objects.filesystem(out)
    found.invalidate_cache()
    return {name[name.index(path) + len(path) + 1 :]: found.cat_file(name) for name in found.find(path)}


def published_run(out: str, run_id: str = "whole", uris: str = "abc") -> Run:
    run = begin(out, run_id, 2)
    write_part(run, uris)
    publish(run, uris)
    run.finish(summary_of(run))
    return run


def test_without_yes_everything_is_shown_and_stays(out: str) -> None:
    write(out, FOREIGN)
    run = begin(out, "r")
    write_part(run, "abc")
    write(run.folder, WORK)
    before = contents(out)
    found = crackbatch.clean(out)
    assert contents(out) == before
    (left,) = found.leftovers
    assert (left.run_id, left.state, left.lost_rows, found.removed) == ("r", "interrupted", 3, False)
    ours = {name: data for name, data in before.items() if name.startswith("runs/r/")}
    assert len(left.files) == len(ours) == len(WORK) + 2
    assert left.size_bytes == sum(map(len, ours.values()))


def test_runs_that_were_never_published_go_whole_and_nothing_else(out: str) -> None:
    kept = published_run(out)
    write(out, FOREIGN)
    before = contents(out)
    stopped = begin(out, "stopped")
    write_part(stopped, "abc")
    write(stopped.folder, WORK)
    begin(out, "planned")
    failed = begin(out, "failed")
    documents.write_json(
        locations.join(failed.folder, "failure.json"), {"error": "no space", "at": "2026-01-03T11:00:00"}
    )
    write(out, {"runs/planning/scratch/0123456789abcdef.copy": b"x"})
    found = crackbatch.clean(out, yes=True)
    assert {left.run_id: left.lost_rows for left in found.leftovers} == {
        "planning": 0, "failed": 0, "planned": 0, "stopped": 3
    }  # fmt: skip
    assert found.removed
    assert contents(out) == before
    if locations.is_local(out):
        assert not any((Path(out) / "runs" / left.run_id).exists() for left in found.leftovers)
    assert [run.run_id for run in crackbatch.list_runs(out)] == [kept.run_id]
    assert crackbatch.clean(out, yes=True).leftovers == []


def test_a_published_run_loses_only_what_it_needed_while_it_worked(out: str) -> None:
    published_run(out)
    before = contents(out)
    run = begin(out, "r")
    write_part(run, "abc")
    publish(run, "abc")
    documents.write_json(
        locations.join(run.folder, "summary.json"), summary_of(run)
    )  # killed before the rest of finish
    rows = contents(out)
    write(run.folder, WORK)
    (left,) = crackbatch.clean(out, yes=True).leftovers
    assert (left.state, left.lost_rows) == ("published", 0)
    expected = {name: data for name, data in rows.items() if not name.startswith("runs/r/parts/")}
    assert contents(out) == expected
    assert before.items() < expected.items()
    assert len(crackbatch.read_predictions(out, run_id=None)) == 3


@pytest.mark.parametrize("is_failed", [False, True])
def test_an_unfinished_attempt_goes_and_the_rows_published_before_it_stay(out: str, is_failed: bool) -> None:
    run = published_run(out, "nightly")
    begin(out, "nightly")
    before = contents(out)
    write_part(run, "cde")  # c was published before it could be taken out of the plan
    write_part(run, "f", "empty")
    write(run.folder, WORK)
    if is_failed:
        failure = {"error": "no space", "at": "2026-01-03T11:00:00"}
        documents.write_json(locations.join(run.folder, "failure.json"), failure)
    (left,) = crackbatch.clean(out, yes=True).leftovers
    assert (left.state, left.lost_rows) == ("failed" if is_failed else "interrupted", 3)
    assert {name: data for name, data in contents(out).items() if not name.endswith("failure.json")} == before
    assert crackbatch.clean(out, yes=True).leftovers == []
    (listed,) = crackbatch.list_runs(out)
    assert (listed.images, listed.published) == (0, 3)
    assert choose_run(out, "nightly", None, None) == run, "the same command continues it"


def test_what_a_person_put_into_a_runs_folder_stays(out: str) -> None:
    run = begin(out, "r")
    theirs = write(run.folder, {"notes.txt": b"x", "figures/parts/a.part": b"x", "figures/.a.abcd_123.tmp": b"x"})
    write(run.folder, WORK)
    crackbatch.clean(out, yes=True)
    assert contents(run.folder) == theirs
    with pytest.raises(crackbatch.errors.OutputError, match="no runs in"):
        crackbatch.list_runs(out)


def test_links_are_not_followed(tmp_path: Path) -> None:
    run = begin(str(tmp_path / "out"), "r")
    write(str(tmp_path / "elsewhere"), {"00000.arrow": b"x", "a.part": b"x"})
    (tmp_path / "out/runs/latest").symlink_to(tmp_path / "out/runs/r")
    (tmp_path / "out/runs/r/plan").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/runs/r/parts").mkdir()
    (tmp_path / "out/runs/r/parts/a.part").symlink_to(tmp_path / "elsewhere/a.part")
    assert [item.run_id for item in crackbatch.clean(run.out, yes=True).leftovers] == ["r"]
    assert contents(str(tmp_path / "elsewhere")) == {"00000.arrow": b"x", "a.part": b"x"}


def test_damaged_runs_are_passed_over(out: str) -> None:
    run = begin(out, "r")
    write_part(run, "abc")
    write(run.folder, {"summary.json": b"{"})
    before = contents(out)
    found = crackbatch.clean(out, yes=True)
    assert found.leftovers == []
    assert "summary.json is damaged" in found.passed_over["r"]
    assert contents(out) == before


def test_a_run_that_somebody_works_on_is_passed_over(out: str) -> None:
    run = begin(out, "r")
    write_part(run, "abc")
    write(run.folder, {"plan/00000.arrow": b"p"})
    before = contents(out)
    with lease.Holding(run.folder, "run r"):
        found = crackbatch.clean(out, yes=True)
    assert found.leftovers == []
    assert found.passed_over["r"].startswith("is running (")
    assert contents(out) == before
    assert [left.run_id for left in crackbatch.clean(out, yes=True).leftovers] == ["r"]


def test_a_run_on_a_machine_whose_clock_is_behind_is_passed_over(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_SILENT_S", 3.0)
    run = begin(out, "r")
    write_part(run, "abc")
    elsewhere = replace(DEAD, machine="other/pid:[1]")
    location = locations.join(run.folder, "lease-00003.json")
    atomic.write_whole(location, lease._encode(elsewhere))
    renewed = lease._encode(replace(elsewhere, renewed_at="2026-01-01T00:00:05+00:00"))
    renewing = threading.Timer(1.5, atomic.write_whole, [location, renewed])
    renewing.start()
    found = crackbatch.clean(out, yes=True)
    renewing.join()
    assert found.passed_over == {"r": f"is running ({elsewhere.holder}, since {elsewhere.since})"}
    assert read_done(run)[1].num_rows == 3


def test_one_run_alone_is_cleaned(out: str) -> None:
    begin(out, "a")
    begin(out, "b")
    with pytest.raises(OptionError, match=r"no run c in .*; runs: a, b"):
        crackbatch.clean(out, yes=True, run_id="c")
    assert [left.run_id for left in crackbatch.clean(out, yes=True, run_id="a").leftovers] == ["a"]
    assert [run.run_id for run in crackbatch.list_runs(out)] == ["b"]


def test_the_command_removes_only_with_yes(out: str) -> None:
    published_run(out)
    write_part(begin(out, "r"), "abc")
    write(out, {"runs/bad/run.json": json.dumps({"run_id": "other", "fingerprint": ""}).encode()})
    before = contents(out)
    shown = crackbatch_says("clean", out)
    assert shown.returncode == 0, shown.stderr
    assert "skipped: bad is damaged: run.json belongs to run 'other'" in shown.stdout
    assert "3 scored rows that are not published\nnothing was removed; give --yes" in shown.stdout
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
    assert contents(out) == before
    removed = crackbatch_says("clean", out, "--run-id", "r", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert "removed: 2 files" in removed.stdout
    assert contents(out) == {name: data for name, data in before.items() if not name.startswith("runs/r/")}
    assert "nothing to remove" in crackbatch_says("clean", out, "--yes").stdout
    assert crackbatch_says("clean", out, "--run-id", "r").returncode == 2
