"""A run's folder is its own, whatever its output location is called."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from builders.runs import begin, publish, summary_of, write_part
from crackbatch.results.parts import read_done
from crackbatch.results.run import choose_run
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
