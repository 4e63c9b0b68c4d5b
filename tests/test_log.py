"""What a command says as JSON objects can be read line by line, and tells which run it is about."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from builders.archives import write_files
from builders.processes import CRACKBATCH, run_all
from crackbatch import log
from crackbatch.progress import say


def objects_in(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "event", "message"]
        assert abs((datetime.fromisoformat(line["time"]) - datetime.now(UTC)).total_seconds()) < 600
    return lines


def test_each_line_of_a_run_is_an_object_and_the_last_one_has_the_counts(
    tmp_path: Path, tiles: dict[str, bytes]
) -> None:
    source = write_files(tmp_path / "in", {**tiles, "bad.jpg": b"x"})
    command = [CRACKBATCH, "score", str(source), "--out", str(tmp_path / "out"), "--log-format", "json"]
    done = subprocess.run([*command, "--max-error-rate", "0.01", "--engine", "local"], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    *_, last = lines = objects_in(done.stderr + done.stdout)
    (saved,) = (tmp_path / "out").glob("runs/*/summary.json")
    summary = json.loads(saved.read_text())
    assert {name: last[name] for name in summary} == summary
    assert last["level"] == "warning"
    assert last["event"] == "finished"
    assert last["statuses"] == {"ok": 12, "not_an_image": 1}
    assert {line["run_id"] for line in lines if line["event"] != "note"} == {summary["run_id"]}


def test_errors_are_objects_too_and_a_file_of_options_may_ask_for_them(tmp_path: Path, image: Path) -> None:
    (tmp_path / "options.toml").write_text('[score]\nlog-format = "json"\n')
    score = ["score", str(image.parent), "--out", "out"]
    wrong, by_file, by_option, text = run_all(
        [
            [*score, "--log-format", "xml"],
            ["--config", "options.toml", *score, "--limit", "0"],
            [*score, "--limit", "0", "--log-format", "json"],
            [*score, "--limit", "0"],
        ],
        tmp_path,
    )
    for answer in (by_file, by_option):
        (line,) = objects_in(answer.stderr)
        assert (line["level"], line["event"], line["exit_code"]) == ("error", "failed", 2)
        assert line["message"] == "--limit must be 1 or more, got 0"
    assert wrong.stderr == "crackbatch: --log-format must be text or json, got 'xml'\n"
    assert text.stderr == "crackbatch: --limit must be 1 or more, got 0\n"


def test_a_command_that_is_stopped_says_so_as_an_object() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, time\n"
         "from crackbatch import log\n"
         "from crackbatch.cli.interruption import Interrupted, interruptible\n"
         "log.set_format('json')\n"
         "log.tell_about(run_id='night')\n"
         "try:\n"
         "    with interruptible('mend'): print(flush=True); time.sleep(60)\n"
         "except Interrupted as error: os._exit(error.exit_code)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    (line,) = objects_in(said)
    assert (line["event"], line["message"], line["run_id"]) == ("interrupted", "interrupted; mend", "night")
    assert line["exit_code"] == process.returncode == 130


def test_numbers_that_json_does_not_have_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_format("json")
    try:
        say("epoch 1", "epoch", train_loss=float("nan"), deep={"high": [float("inf"), 1.0]})
    finally:
        log.set_format("text")
    (line,) = objects_in(capsys.readouterr().err)
    assert (line["train_loss"], line["deep"]) == (None, {"high": [None, 1.0]})
