"""A file can hold the options of commands; the command line has the last word, and a wrong name is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import crackbatch
from crackbatch.cli.commands import app
from crackbatch.errors import OptionError


def run(config: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["--config", str(config), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_options_of_a_file_are_used_and_those_of_the_command_line_win(tmp_path: Path, image: Path) -> None:
    image.with_name("b.jpg").write_bytes(image.read_bytes() + b" ")
    config = tmp_path / "crackbatch.toml"
    config.write_text(
        f"[score]\nsources = ['{image.parent}']\nout = '{tmp_path}/out'\nengine = 'local'\n"
        "limit = 1\nrun_id = 'night'\n"
        f"[runs]\nout = '{tmp_path}/out'\n"
    )
    run(config, "score")
    (listed,) = crackbatch.list_runs(tmp_path / "out")
    assert (listed.run_id, listed.images) == ("night", 1)
    assert "night" in run(config, "runs")
    run(config, "score", "--limit", "2", "--run-id", "other")
    assert crackbatch.list_runs(tmp_path / "out")[-1].images == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[score]\ntreshold = 0.5\n", "score has no option 'treshold'; it has address, "),
        ("[scores]\nlimit = 1\n", "'scores' is no command; write its options below "),
        ("limit = 1\n", "'limit' is no command"),
        ("[score\n", "cannot be read as TOML"),
        ("[score]\nname = '\udce9'\n", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OptionError, match=message):
        run(tmp_path / "c.toml", "score", "x")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml does not exist"):
        run(tmp_path / "none.toml", "score", "x")
