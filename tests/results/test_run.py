"""A run's folder is its own, whatever its output location is called."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from builders.runs import begin, publish, summary_of, write_part
from crackbatch.errors import OutputError
from crackbatch.results.parts import read_done
from crackbatch.results.run import choose_run
from crackbatch.results.states import list_runs
from crackbatch.storage import atomic, locations, objects


def test_a_day_may_be_given_as_a_date(tmp_path: Path) -> None:
    day = date(2026, 2, 28)
    assert choose_run(str(tmp_path), "0" * 64, day, None).date == day.isoformat()  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run_id": "night", "fingerprint": "f"}', "has None instead of a date"),
        ('{"run_id": "night", "fingerprint": "f", "date": "x/../../../../escaped"}', "instead of a date"),
        ('{"run_id": "night", "fingerprint": "f", "date": "2026-13-01"}', "instead of a date"),
        ('{"run_id": "night", "fingerprint": "f", "date": 20260101}', "instead of a date"),
        ('{"run_id": "other", "fingerprint": "f", "date": "2026-01-01"}', "belongs to run 'other'"),
        ("[" * 100_000, "is damaged"),
    ],
)
@pytest.mark.parametrize("run_id", ["night", None])
def test_a_run_json_that_no_run_has_written_is_refused_by_name(
    run_id: str | None, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "night").mkdir(parents=True)
    (tmp_path / "runs" / "night" / "run.json").write_text(text)
    with pytest.raises(OutputError, match=f"runs/night/run.json .*{message}.*remove it and run again"):
        choose_run(str(tmp_path), "f", None, run_id)
    assert [run.state for run in list_runs(str(tmp_path))] == ["damaged"]
