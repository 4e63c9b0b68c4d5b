"""A night is scored once, whatever starts it how often; missed nights are caught up with; other nights are told."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from typer.testing import CliRunner

import crackbatch
from builders.archives import write_files
from crackbatch.cli.commands import app
from crackbatch.cli.demo import draw_tile
from crackbatch.errors import OptionError, SourceError
from crackbatch.results.run import Run
from crackbatch.scoring.nightly import read_night
from crackbatch.storage.lease import Holding

pytestmark = pytest.mark.xdist_group("nights")  # one process scores the week that they share


def fill(inbox: Path, day: int, num: int = 60, scale: float = 1.0) -> None:
    """The images that a night brings: every third one cracked; `scale` darkens them."""
    folder = inbox / f"2026-11-{day:02d}"
    tiles = {f"{day}-{number}.jpg": draw_tile(1000 * day + number, number % 3 == 0) for number in range(num)}
    write_files(folder, tiles)
    for file in folder.iterdir() if scale != 1 else ():
        PIL.Image.open(file).point(lambda value: int(value * scale)).save(file, quality=88)


def score_night(inbox: Path, out: Path, day: int, **options: object) -> crackbatch.Nights:
    return crackbatch.nightly(f"{inbox}/{{date}}", out, date=f"2026-11-{day:02d}", engine="local", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inbox of four nights, all of them scored."""
    root = tmp_path_factory.mktemp("nights")
    for day in range(1, 5):
        fill(root / "in", day)
        assert score_night(root / "in", root / "out", day).exit_code == 0
    return root


def test_a_night_is_one_run_with_a_record_and_a_replay_does_nothing(week: Path) -> None:
    night = read_night(str(week / "out"), "2026-11-04")
    assert night is not None
    assert (night.run_id, night.images, night.scored) == ("night-2026-11-04", 60, 60)
    assert night.compared_with == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert sum(night.histograms["brightness"]) == sum(night.histograms["probability"]) == 60
    record = week / "out" / "nights" / "2026-11-04.json"
    before = record.stat().st_mtime_ns
    assert score_night(week / "in", week / "out", 4).nights == [night]
    assert record.stat().st_mtime_ns == before
    table = pd.read_parquet(week / "out" / "predictions")
    assert len(table) == table["image_uri"].nunique() == 240


def test_missed_nights_are_caught_up_with_and_late_images_are_added(week: Path) -> None:
    fill(week / "in", 5)
    fill(week / "in", 7)
    shown = CliRunner().invoke(app, ["nightly", "--inbox", f"{week}/in/{{date}}", "--out", f"{week}/out", "--date",
                                     "2026-11-07", "--since", "2026-11-03", "--engine", "local"])  # fmt: skip
    assert shown.exit_code == 4, shown.output
    lines = [line for line in shown.output.splitlines() if line.startswith("night ")]
    assert [line.split(":")[0] for line in lines] == ["night 2026-11-05", "night 2026-11-06", "night 2026-11-07"]
    assert "nothing was scored: " in shown.output
    assert "not as before, since 2026-11-06: 0 images, where 60 are usual" in shown.output
    write_files(week / "in" / "2026-11-07", {"late.jpg": draw_tile(77, True)})
    (night,) = score_night(week / "in", week / "out", 7).nights
    assert night.images == 61


def test_dark_pictures_are_told_with_exit_code_4_or_0_if_asked(week: Path) -> None:
    fill(week / "in", 8, scale=0.4)
    found = score_night(week / "in", week / "out", 8)
    assert found.exit_code == 4
    assert "brightness" in {drift.figure for drift in found.nights[0].drift}
    assert score_night(week / "in", week / "out", 8, exit_zero_when_published=True).exit_code == 0
    assert json.loads((week / "out" / "nights" / "2026-11-08.json").read_text())["exit_code"] == 4


def test_a_night_that_another_process_works_on_is_left_alone(week: Path) -> None:
    fill(week / "in", 9)
    run = Run(str(week / "out"), "night-2026-11-09", "2026-11-09")
    with Holding(run.folder, "run night-2026-11-09"):
        found = score_night(week / "in", week / "out", 9)
    assert (found.nights, found.running, found.exit_code) == ([], ["2026-11-09"], 0)
    assert score_night(week / "in", week / "out", 9).nights[0].images == 60


def test_too_many_failures_end_with_3(week: Path) -> None:
    fill(week / "in", 10, num=5)
    write_files(week / "in" / "2026-11-10", {f"bad-{number}.jpg": b"x" for number in range(5)})
    assert score_night(week / "in", week / "out", 10).exit_code == 3


def test_another_way_to_write_the_date(tmp_path: Path) -> None:
    write_files(tmp_path / "in" / "2026" / "11" / "02", {"a.jpg": draw_tile(1, True)})
    found = crackbatch.nightly(f"{tmp_path}/in/{{date:%Y/%m/%d}}", tmp_path / "out", date="2026-11-02", engine="local")
    assert found.nights[0].images == 1


def test_a_wrong_request_is_one_line(week: Path, tmp_path: Path) -> None:
    for date in ("20.11.2026", "", "tomorrow"):
        with pytest.raises(OptionError, match="a date must be written as 2026-11-20, or yesterday, got "):
            crackbatch.nightly(week / "in", tmp_path, date=date)
    with pytest.raises(OptionError, match="--since 2026-11-09 is after --date 2026-11-08"):
        score_night(week / "in", tmp_path, 8, since="2026-11-09")
    with pytest.raises(SourceError, match="no such file or folder"):
        score_night(tmp_path / "none", tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
