"""Small work is scored without Ray, and leaves the process as it was."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from builders.archives import write_files
from builders.processes import run_main
from builders.runs import rows, score
from crackbatch.errors import OptionError, RunError


def test_small_work_is_scored_without_ray_and_it_is_said_at_once_what_is_done(image: Path, tmp_path: Path) -> None:
    done = run_main(["score", str(image), "--out", str(tmp_path / "out")], "assert 'ray' not in loaded")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(("planning …", "0 of 1 image, waiting for the first results"))
    assert "1 image in" in done.stdout


def test_a_run_leaves_neither_processes_nor_settings_of_torch(tiles: dict[str, bytes], tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", tiles)
    before, threads = set(psutil.Process().children(recursive=True)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        score(source, tmp_path / "out", engine="local")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_more_images_fail_than_are_allowed_and_the_rest_is_scored_later(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {f"{index:04d}.jpg": b"x" for index in range(2000)})
    first = score(source, tmp_path / "out", engine="local", max_errors=5)
    assert (first.exit_code, first.stopped_early) == (3, True)
    assert 5 < first.images == first.added < 2000
    last = score(source, tmp_path / "out", engine="local", max_errors=2000)
    assert (last.run_id, last.images) == (first.run_id, 2000)
    assert rows(tmp_path / "out")["image_uri"].nunique() == 2000


def test_an_error_of_a_stage_is_one_line_and_the_run_can_go_on(image: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "broken", {"PIL/__init__.py": b"raise ImportError('Pillow is broken')"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "broken"))
        with pytest.raises(RunError, match=r"the run stopped \(a decoder .*: Pillow is broken\); run the same"):
            score(image, tmp_path / "out", engine="local")
    assert score(image, tmp_path / "out", engine="local").images == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "--engine must be one of auto, local, ray, got 'spark'"),
        ({"engine": "local", "address": "127.0.0.1:1"}, "--engine local scores in this process and needs no --address"),
        ({"address": "ray://head:10001"}, "ray job submit --address http://head:8265 -- crackbatch"),
    ],
)
def test_engines_that_cannot_be_are_refused(options: dict[str, str], message: str, image: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        score(image, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
