"""Every night into the same results: only what is new is scored, and a night on which all goes wrong is ended early."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import crackbatch
from builders.archives import write_files, zip_with
from crackbatch.cli import output
from crackbatch.results.states import list_runs
from crackbatch.results.summary import RunSummary


@pytest.mark.usefixtures("without_ray")
def test_a_night_scores_what_is_new_or_changed_or_could_not_be_read_and_nothing_else(
    tmp_path: Path, tiles: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_files(tmp_path / "in", {**tiles, "bad.jpg": b"x"}), tmp_path / "out"
    (tmp_path / "named.csv").write_text(f"image_uri\n{tmp_path / 'away.jpg'}\n")
    sources = [str(folder), str(tmp_path / "named.csv")]

    def score_night(date: str, *, dry_run: bool = False) -> RunSummary:
        return crackbatch.score(sources, str(out), date=date, new_only=True, max_error_rate=1.0, dry_run=dry_run)

    first = score_night("2026-03-01")
    assert first.statuses == {"ok": len(tiles), "not_an_image": 1, "missing": 1}

    write_files(folder, {"new.jpg": tiles["tile-00.jpg"], "tile-01.jpg": tiles["tile-02.jpg"] + b"\0"})
    write_files(tmp_path, {"away.jpg": tiles["tile-03.jpg"]})
    assert score_night("2026-03-02", dry_run=True).images == 3
    second = score_night("2026-03-02")
    assert second.run_id != first.run_id
    assert second.statuses == {"ok": 3}
    assert second.passed_over == {"images that an earlier run has scored (--new-only)": len(tiles)}
    found = crackbatch.read_predictions(str(out), run_id=second.run_id)
    assert sorted(Path(uri).name for uri in found["image_uri"]) == ["away.jpg", "new.jpg", "tile-01.jpg"]

    third = score_night("2026-03-03")
    assert (third.added, third.images, third.exit_code) == (0, 0, 0)
    assert [len(pd.read_parquet(file)) for file in third.files] == [0]
    output.print_summary(third)
    assert "nothing new" in capsys.readouterr().out
    listed = {run.run_id: run for run in list_runs(str(out))}
    assert (listed[third.run_id].state, listed[third.run_id].images) == ("published", 0)
    assert json.loads((out / "runs" / third.run_id / "summary.json").read_text())["images"] == 0
    again = score_night("2026-03-03")
    assert (again.run_id, again.added) == (third.run_id, 0)

    table = pd.read_parquet(out / "predictions")
    assert not table.duplicated(["image_uri", "version"]).any()
    assert len(table) == first.images + second.images


@pytest.mark.faults
@pytest.mark.usefixtures("ray_here")
def test_a_run_in_which_far_more_fails_than_was_allowed_is_ended_and_can_be_continued(tmp_path: Path) -> None:
    number = 20_000
    write_files(tmp_path / "in", {"all.zip": zip_with(0, {f"{index:05d}.jpg": b"x" for index in range(number)})})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    first = crackbatch.score(source, out, date="2026-03-01", max_errors=5)
    assert (first.exit_code, first.stopped_early) == (3, True)
    assert 5 < first.images < number
    table = pd.read_parquet(tmp_path / "out" / "predictions")
    assert len(table) == table["image_uri"].nunique() == first.images == first.added
    second = crackbatch.score(source, out, date="2026-03-01", max_errors=5)
    assert (second.run_id, second.added, second.exit_code) == (first.run_id, 0, 3)
    third = crackbatch.score(source, out, date="2026-03-01", max_errors=number, max_error_rate=1.0)
    assert (third.run_id, third.exit_code, third.images) == (first.run_id, 0, number)
    assert pd.read_parquet(tmp_path / "out" / "predictions")["image_uri"].nunique() == number


def test_a_scheduler_that_would_try_again_can_ask_for_exit_code_0(
    tmp_path: Path, tiles: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "in", {**dict(list(tiles.items())[:3]), "bad.jpg": b"x"})
    found = crackbatch.score(folder, tmp_path / "out", engine="local", exit_zero_when_published=True)
    assert found.exit_code == 0
    output.print_summary(found)
    assert "exit code 0, as asked, although 25.0% of the images have no score" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "runs" / found.run_id / "summary.json").read_text())["exit_code"] == 3
    assert crackbatch.score(folder, tmp_path / "out", engine="local", run_id=found.run_id).exit_code == 3
