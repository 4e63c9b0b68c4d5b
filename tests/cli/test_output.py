"""What a command prints fits a terminal and says what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import crackbatch
from builders.pictures import make_mislabelled, make_photos
from builders.processes import crackbatch_says
from builders.runs import MODEL, begin, write_part
from crackbatch.cli.commands import app
from crackbatch.storage import documents, locations


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_mislabelled(tmp_path / "photos" / "deck")


def test_a_source_of_one_photo_is_printed_without_intervals(tmp_path: Path) -> None:
    make_photos(tmp_path / "north" / "deck", 1)
    sources = [str(tmp_path / "north" / "deck"), str(make_photos(tmp_path / "south", 3, seed=100))]
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["evaluate", *sources, "--out", str(out)], catch_exceptions=False).output
    assert re.search(r"^ +deck/D +south/D +all *$", shown, re.MULTILINE)
    interval = r"\d\.\d{3}-\d\.\d{3}"
    assert re.search(
        rf"^accuracy( +\d\.\d{{3}}){{3}} *\n +\(one group\) +{interval} +{interval} *$", shown, re.MULTILINE
    )
    assert all(len(line) <= 100 for line in shown.splitlines() if not line.startswith(("left out", "metrics")))
    accuracy = json.loads((out / "metrics.json").read_text())["sources"]["deck/D"]["metrics"]["accuracy"]
    assert accuracy == {"value": pytest.approx(0.5, abs=0.5), "low": None, "high": None}


def test_the_commands_print_what_they_found(photos: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(photos), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert re.search(r"deck/D *\nimages +82 *\n", shown.output)
    shown = CliRunner().invoke(app, ["dataset", str(photos), "--out", str(tmp_path / "ds")], catch_exceptions=False)
    assert re.search(r"deck/D +crack .*in \d+ groups", shown.output)


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
    assert all(len(line) <= 100 for line in lines)
    assert re.match(r"2026-01-01-0123abcd +2026-01-01  interrupted +8,000 ", lines[1])
    assert MODEL in "".join(line[-30:].strip() for line in lines)
    assert "".join(re.findall("^x+", table.stdout, re.MULTILINE)) == "x" * 128
    assert "\x1b" not in table.stdout
    answer = crackbatch_says("runs", out, "--json")
    assert answer.returncode == 0, answer.stderr
    assert [crackbatch.ListedRun(**run) for run in json.loads(answer.stdout)] == crackbatch.list_runs(out)
